"""The actors of a run: reserves their places, starts them together, and hands them out as the loop's roles."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import ray

from cluster.group import ActorGroup
from cluster.placement import Placement, RoleSpec, place
from cluster.preflight import preflight
from cluster.session import Session
from rl.actors.colocation import ExportingLearner
from rl.actors.learner import AdapterReference, LearnerGroup
from rl.actors.reward import RewardGroup
from rl.actors.rollout import RolloutGroup, sampler_config
from rl.actors.rollout_stream import StreamingRolloutGroup
from rl.actors.samples import SampleShipper
from rl.actors.tenancy import TENANCIES, Tenancy
from rl.config import OptimizerConfig, Recipe
from rl.early_reference import Fits
from rl.protocols import FrozenPolicy
from rl.sampler_config import Device


def role_specs(recipe: Recipe, gpus: bool) -> list[RoleSpec]:
    """What the recipe's roles ask of the cluster; without GPUs every worker takes one logical CPU."""
    each = 1.0 if gpus else 0.0
    specs = [
        RoleSpec("rollout", recipe.rollout.actors, gpus=each, tensor_parallel=recipe.rollout.tensor_parallel),
        RoleSpec("learner", recipe.learner.ranks, gpus=each, together=True),
        RoleSpec("reward", 1, cpus=float(recipe.reward.workers)),
    ]
    if has_reference_actor(recipe):
        specs.append(RoleSpec("reference", recipe.reference.ranks, gpus=each, together=True))
    return specs


def asks_for_gpus(recipe: Recipe, local: bool, there: bool) -> bool:
    """Whether the roles get GPUs: where the cluster has some, or is one that nodes join and the recipe names theirs."""
    return there or (not local and recipe.plan.gpu is not None)


def sampler_group(recipe: Recipe) -> type[RolloutGroup]:
    """Samplers stream for the one stage that works on groups as they end."""
    return StreamingRolloutGroup if "grpo" in recipe.stages else RolloutGroup


def needs_reference(recipe: Recipe) -> bool:
    """A KL term is what a reference is for."""
    return "grpo" in recipe.stages and recipe.algorithm.kl_coefficient != 0


def has_reference_actor(recipe: Recipe) -> bool:
    return needs_reference(recipe) and recipe.reference.placement == "actor"


def cpu_threads(ranks: int, beside: int = 0) -> dict[str, str]:
    """The cores, shared out between the ranks of one role: learner and reference never compute at the same time.

    `beside`: samplers that always do, each on a core of its own. A reference that is begun early in a synchronous step
    computes beside samplers too, and has all cores nevertheless.
    """
    cores = len(os.sched_getaffinity(0)) - beside
    return {"OMP_NUM_THREADS": str(max(1, cores // ranks)), "OMP_WAIT_POLICY": "PASSIVE"}


def samples_at_once(recipe: Recipe) -> int:
    """Samples that one actor after another asks for: those of a step, those sampled ahead of it, and of the step before."""
    grpo, rounds = recipe.grpo, recipe.algorithm.max_sampling_rounds if recipe.algorithm.dynamic_sampling else 1
    of_a_step = {"grpo": grpo.prompts_per_step * rounds * (1 + grpo.max_staleness), "sft": recipe.sft.batch_size}
    return 2 * max(of_a_step[stage] for stage in recipe.stages)


@dataclass(frozen=True)
class StagePolicy:
    """The policy a stage trains, the frozen one it is held to, and the actors behind them.

    `reference_fits`: which groups are one micro-batch a rank of the reference; None where it waits for the samplers' GPUs.
    """

    learner: ExportingLearner
    reference: FrozenPolicy | None
    groups: tuple[LearnerGroup, ...]
    reference_fits: Fits | None

    def shutdown(self) -> None:
        for group in self.groups:
            group.shutdown()


class Crew:
    """Rollout and reward actors live as long as the run; learner and reference as long as their stage."""

    def __init__(self, session: Session, recipe: Recipe, max_images: int) -> None:
        self.session, self.recipe = session, recipe
        self.gpus = asks_for_gpus(recipe, session.local, ray.cluster_resources().get("GPU", 0) > 0)
        specs = role_specs(recipe, self.gpus)
        timeout = recipe.cluster.placement_timeout_s
        tenancy = TENANCIES[recipe.cluster.placement]
        self.placement: Placement = session.own(
            place(specs, timeout_s=timeout, may_grow=not session.local, shared=tenancy.shared)
        )
        self.shipper = SampleShipper(keep=samples_at_once(recipe))
        self.timeout = recipe.cluster.start_timeout_s
        self.rewards = session.own(RewardGroup(self.placement["reward"], recipe.reward, {}, self.timeout))
        engine = sampler_config(recipe.model, recipe.rollout, recipe.seed, max_images, sleeps=bool(tenancy.shared))
        device: Device = "gpu" if self.gpus else "cpu"
        samplers = sampler_group(recipe)
        self.samplers = session.own(samplers(self.placement["rollout"], engine, device, self.shipper, self.timeout))
        lora = recipe.model.lora
        self.tenancy: Tenancy = tenancy(self.samplers, adapters=bool(lora.rank) and lora.sync == "adapter")
        self.rollouts = self.tenancy.rollouts

    def start_stage(self, stage: str, start_from: Path | None) -> StagePolicy:
        """Load a stage's learner, and its reference if it has one, while the rollout actors may still be loading."""
        grpo, tenancy = stage == "grpo", self.tenancy
        optimizer = self.recipe.grpo.optimizer if grpo else self.recipe.sft.optimizer
        held = grpo and needs_reference(self.recipe)
        learner = self._group("learner")
        groups = (learner, self._group("reference")) if held and has_reference_actor(self.recipe) else (learner,)
        tenancy.begin_stage()
        for group in groups:
            tenancy.settle(group, self._build(group, optimizer if group is learner else None, grpo, start_from))
        preflight([self.samplers.group, self.rewards.group, *(group.group for group in groups)])
        tenancy.ready()
        learner.connect(self.recipe.model, self.recipe.sync, self.samplers.seats())
        computing = groups[-1] if len(groups) > 1 else AdapterReference(learner)
        reference = tenancy.reference(computing, on=groups[-1]) if held else None
        early = not tenancy.shared and self.recipe.learner.layout == "shared"
        return StagePolicy(tenancy.learner(learner), reference, groups, groups[-1].fits_at_once if early else None)

    def _group(self, role: str) -> LearnerGroup:
        beside = self.recipe.rollout.actors if self.recipe.grpo.max_staleness else 0
        env = {} if self.gpus else cpu_threads(len(self.placement[role]), beside)
        slots, config = self.placement[role], self.recipe.learner
        if role == "reference":  # it keeps no activations, which are what ranks share a sequence for
            config = replace(config, sequence_parallel=1)
        return self.session.own(LearnerGroup(role, slots, config, self.shipper, env, self.timeout))

    def _build(
        self, group: LearnerGroup, optimizer: OptimizerConfig | None, grpo: bool, start_from: Path | None
    ) -> list[ray.ObjectRef]:
        algorithm = self.recipe.algorithm if grpo else None
        attention_loss = self.recipe.sft.attention_loss
        wanted = attention_loss if not grpo and attention_loss.weight else None
        temperature = self.recipe.rollout.temperature if grpo else 1.0
        keeps = grpo and needs_reference(self.recipe) and not has_reference_actor(self.recipe)
        return group.build(self.recipe.model, optimizer, algorithm, wanted, temperature, start_from, keeps)

    def actor_groups(self, policy: StagePolicy) -> list[ActorGroup]:
        """All actors that a stage works with."""
        return [self.samplers.group, self.rewards.group, *(group.group for group in policy.groups)]

    def peak_memory(self, policy: StagePolicy) -> dict[str, float]:
        """Peak host memory in MiB by actor."""
        groups: list[RolloutGroup | LearnerGroup] = [self.samplers, *policy.groups]
        return {name: mib for group in groups for name, mib in group.peak_memory().items()}
