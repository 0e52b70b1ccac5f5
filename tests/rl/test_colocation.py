"""Colocated roles take turns, never overlap, and compute what roles on GPUs of their own compute: real vLLM and learners."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from torch import Tensor
from verl.protocol import DataProto

from data.sample import Sample
from data.stream import PromptStream
from rewards.config import RewardConfig
from rl.actors.colocation import ColocatedLearner, ColocatedReference, ColocatedRollouts, Gpus, RanksInTurn
from rl.config import AlgorithmConfig, GrpoConfig, LearnerConfig, ModelConfig, OptimizerConfig, load_recipe
from rl.config_checks import ConfigError
from rl.engines.base import Rendezvous
from rl.export import export_policy
from rl.learner import Learner
from rl.loop import GrpoLoop, Roles, hand_over
from rl.protocols import Published
from rl.records import Rollout, RolloutFailure, Sampling, WeightsReceipt
from tests.rl.sampler_case import adapted, config_of, matrices, rollouts_of, running_sampler, sampler_config

from rl.sampler import VllmSampler, WeightsError  # isort: skip  (sampler_case sets vLLM's environment)
from tests.rl.local_roles import LocalLearner, LocalRewards, LocalRollouts  # isort: skip

SHIPPED = Path(__file__).parents[2] / "recipes" / "locus" / "tiny.yaml"
KL = AlgorithmConfig(kl_coefficient=0.01)
GREEDY = Sampling(1, 0.0, 1.0, 8)


@pytest.fixture(scope="module")
def sampler(tiny_model_dir: Path) -> Iterator[VllmSampler]:
    with running_sampler(sampler_config(tiny_model_dir, sleeps=True, max_lora_rank=8)) as built:
        yield built


class Journal:
    """Who did what, in order, and who is on the GPUs; whoever computes must be there, alone."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.present = {"rollouts"}

    def note(self, line: str) -> None:
        self.lines.append(line)

    def computes(self, role: str, line: str) -> None:
        assert self.present == {role}, f"{line} while {self.present} hold the GPUs"
        self.note(line)


class NotedRollouts(LocalRollouts):
    """A real engine that sleeps and wakes."""

    def __init__(self, sampler: VllmSampler, journal: Journal) -> None:
        super().__init__(sampler)
        self.journal = journal

    def generate(self, samples: Sequence[Sample], sampling: Sampling) -> list[list[Rollout | RolloutFailure]]:
        self.journal.computes("rollouts", "generate")
        return super().generate(samples, sampling)

    def load(self, published: Published) -> list[WeightsReceipt]:
        assert self.journal.present == {"learner", "rollouts' weights"}
        self.journal.note("load")
        return super().load(published)

    def sleep(self, keep_weights: bool) -> None:
        self.sampler.sleep(keep_weights)
        self.journal.present.discard("rollouts")
        self.journal.note("sleep, weights kept" if keep_weights else "sleep")

    def wake(self, part: Literal["weights", "kv_cache"]) -> None:
        self.sampler.wake(part)
        if part == "weights":
            self.journal.present.add("rollouts' weights")
        else:
            self.journal.present.remove("rollouts' weights")
            self.journal.present.add("rollouts")
        self.journal.note(f"wake {part}")


class NotedLearner(LocalLearner):
    """A real learner, or a frozen one, whose engine leaves and comes back."""

    def __init__(self, role: str, learner: Learner, journal: Journal) -> None:
        super().__init__(learner, KL)
        self.role, self.journal = role, journal

    def begin(self, batch: DataProto) -> list[Tensor]:
        self.journal.computes(self.role, "begin")
        return list(super().logprobs(batch))

    def logprobs(self, batch: DataProto) -> Tensor:
        self.journal.computes(self.role, "logprobs")
        return super().logprobs(batch)

    def update(self, batch: DataProto, lr: float) -> dict[str, float]:
        self.journal.computes(self.role, "update")
        return super().update(batch, lr)

    def publish(self, version: int) -> Published:
        self.journal.computes(self.role, f"publish {version}")
        return super().publish(version)

    def save(self, directory: Path) -> None:
        self.journal.computes(self.role, "save")
        super().save(directory)

    def export(self, directory: Path) -> None:
        export_policy(self.learner, directory)

    def offload(self) -> None:
        self.learner.engine.offload()
        self.journal.present.discard(self.role)
        self.journal.note(f"{self.role} off")

    def onload(self) -> None:
        self.learner.engine.onload()
        self.journal.present.add(self.role)
        self.journal.note(f"{self.role} on")


def lettered(sample: Sample, completion: Any) -> float:
    """A random model never writes a box, so its letters are what is judged here."""
    return sum(map(ord, completion.text)) % 97 / 97


@pytest.fixture
def learners(tiny_model_dir: Path, sampler: VllmSampler) -> Iterator[tuple[Learner, Learner]]:
    """One that trains and a frozen one, of the same weights."""
    model, config = ModelConfig(path=str(tiny_model_dir)), LearnerConfig(dtype="float32", tokens_per_micro_batch=600)
    trained, frozen = (
        Learner(model, config, optimizer, sampler.encoder, Rendezvous(), temperature=1.0)
        for optimizer in (OptimizerConfig(lr=1e-3), None)
    )
    yield trained, frozen
    frozen.close()
    trained.close()


def colocate(
    sampler: VllmSampler, learners: tuple[Learner, Learner], journal: Journal, adapters: bool = False
) -> tuple[ColocatedRollouts, ColocatedLearner, ColocatedReference]:
    learner, reference = NotedLearner("learner", learners[0], journal), NotedLearner("reference", learners[1], journal)
    learner.offload()
    reference.offload()
    gpus = Gpus()
    rollouts = ColocatedRollouts(NotedRollouts(sampler, journal), gpus, adapters)
    rollouts.learner = ColocatedLearner(learner, RanksInTurn(learner), gpus)
    journal.lines.clear()
    return rollouts, rollouts.learner, ColocatedReference(reference, RanksInTurn(reference), gpus)


def run(roles: Roles, samples: list[Sample], sampler: VllmSampler, steps: int = 2) -> list[dict[str, float]]:
    """Metrics of every step, without its times."""
    loop = GrpoLoop(
        roles,
        PromptStream(samples, seed=0),
        sampler.encoder.completion,
        GrpoConfig(steps=steps, prompts_per_step=4, prompts_per_update=2, num_generations=3),
        KL,
        Sampling(3, 1.0, 1.0, 8, seed=1),
        mismatch_bound=1e-4,
    )
    hand_over(roles.learner, roles.rollouts, 0)
    reports = [loop.step(step).metrics for step in range(steps)]
    return [
        {name: value for name, value in report.items() if not name.startswith(("time/", "throughput/"))}
        for report in reports
    ]


def weights_of(learner: Learner) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in learner.full_weights()}


HANDED_OVER = ["wake weights", "load", "learner off", "wake kv_cache"]
STEP = [
    *("generate", "sleep"),
    *("reference on", "begin", "reference off"),
    *("learner on", "logprobs", "update", "update"),
]


def test_a_colocated_run_equals_one_on_separate_gpus_and_nobody_overlaps(
    tiny_model_dir: Path, tiny_samples: list[Sample], sampler: VllmSampler, learners: tuple[Learner, Learner]
) -> None:
    model, config = ModelConfig(path=str(tiny_model_dir)), LearnerConfig(dtype="float32", tokens_per_micro_batch=600)
    apart = Learner(model, config, OptimizerConfig(lr=1e-3), sampler.encoder, Rendezvous(), temperature=1.0)
    journal = Journal()
    with LocalRewards(RewardConfig(name="tests.rl.test_colocation:lettered")) as rewards:
        separate = Roles(LocalRollouts(sampler), rewards, LocalLearner(apart, KL), LocalLearner(learners[1], KL))
        expected = run(separate, tiny_samples, sampler)
        rollouts, learner, reference = colocate(sampler, learners, journal)
        found = run(Roles(rollouts, rewards, learner, reference), tiny_samples, sampler)
    assert found == expected
    assert found[-1]["loss/kl"] > 0
    after, before = weights_of(learners[0]), weights_of(apart)
    assert all(after[name].equal(before[name]) for name in before)
    gate = STEP.index("logprobs")
    first = [*STEP[:gate], "logprobs", *STEP[gate:]]
    begun = ["sleep", "learner on", "publish 0", *HANDED_OVER]
    assert journal.lines == [*begun, *first, "publish 1", *HANDED_OVER, *STEP, "publish 2", *HANDED_OVER]
    apart.close()


def test_weights_given_up_for_a_checkpoint_are_asked_for_again(
    tmp_path: Path, tiny_samples: list[Sample], sampler: VllmSampler, learners: tuple[Learner, Learner]
) -> None:
    journal = Journal()
    rollouts, learner, _ = colocate(sampler, learners, journal)
    hand_over(learner, rollouts, 7)
    before = rollouts.generate(tiny_samples, GREEDY)
    journal.lines.clear()
    learner.save(tmp_path)
    assert journal.lines == ["sleep", "learner on", "save"]
    assert rollouts.generate(tiny_samples, GREEDY) == before
    assert journal.lines[3:] == ["publish 7", *HANDED_OVER, "generate"]


def test_a_base_that_only_adapters_are_published_for_is_kept(
    tiny_model_dir: Path, tiny_samples: list[Sample], sampler: VllmSampler, learners: tuple[Learner, Learner], tmp_path: Path
) -> None:
    journal = Journal()
    rollouts, learner, _ = colocate(sampler, learners, journal, adapters=True)
    adapter = adapted(tiny_model_dir, seed=3)
    sampler.load_adapter(matrices(adapter).items(), config_of(adapter), version=3)
    before = rollouts.generate(tiny_samples, GREEDY)
    learner.save(tmp_path)
    assert rollouts.generate(tiny_samples, GREEDY) == before
    assert journal.lines == [
        *("generate", "sleep, weights kept", "learner on", "save", "learner off"),
        *("wake weights", "wake kv_cache", "generate"),
    ]


def test_a_sampler_without_weights_does_not_sample(
    tiny_samples: list[Sample], sampler: VllmSampler, learners: tuple[Learner, Learner]
) -> None:
    """Even where vLLM has in fact kept them: without a GPU, sleep frees nothing."""
    before = LocalRollouts(sampler)
    hand_over(LocalLearner(learners[0], KL), before, 1)
    expected = rollouts_of(sampler.generate(tiny_samples, GREEDY))
    sampler.sleep(keep_weights=False)
    with pytest.raises(WeightsError, match="given up for its sleep"):
        sampler.generate(tiny_samples, GREEDY)
    sampler.wake("weights")
    hand_over(LocalLearner(learners[0], KL), before, 1)
    sampler.wake("kv_cache")
    assert rollouts_of(sampler.generate(tiny_samples, GREEDY)) == expected


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["learner.ranks=3", "rollout.actors=1", "rollout.tensor_parallel=2"], r"`learner.ranks` \(3\).*\(1 × 2\).*ranks=2"),
        (["learner.ranks=1", "rollout.actors=1", "reference.ranks=2"], r"`reference.ranks` is 2.*`learner.ranks` \(1\)"),
        (["learner.ranks=1", "rollout.actors=1", "model.lora.rank=4", "model.quantization=nf4"], "cannot leave the GPU"),
    ],
)
def test_shapes_that_cannot_share_gpus_are_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_recipe(SHIPPED, ["cluster.placement=colocated", *overrides])
