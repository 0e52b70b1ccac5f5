"""The plan of a recipe: what every GPU holds, how long a step and the whole take, and what does not fit.

    recipe ─► shape, workload ─► memory by role ─┬─► problems ─► fits or not      (advice.py looks for what would)
              hardware ─► packing ───────────────┴─► phases ─► hours, cost

Arithmetic alone: no GPU, no weights, no network.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rl.config import Recipe
from rl.plan import learning
from rl.plan.hardware import Hardware, hardware_of
from rl.plan.memory import HostMemory, KvCache, RoleMemory, host_memory, kv_cache, role_memories
from rl.plan.packing import Places, places
from rl.plan.phases import phases_of, step_seconds
from rl.plan.roofline import Machine, Phase
from rl.plan.shapes import ModelShape, shape_of
from rl.plan.situation import Situation
from rl.plan.workload import Workload, workload_of

# Of what nvidia-smi reports, for context and fragmentation: torch sees 79.25 of an A100's 80 GiB. vLLM keeps to a share.
USABLE = 0.97
TIGHT = 0.92  # above this share of a GPU, the arithmetic's own error may decide
# Where the recipe takes all of a set that is not built here, by the reward's name: the papers' own sizes.
VALIDATION_SAMPLES = {"locus": 500, "focus": 50}

REMEDIES = {
    "learner": "more learner.ranks, learner.offload=all, fewer learner.tokens_per_micro_batch, or LoRA",
    "reference": "more reference.ranks, or kl_coefficient=0, which needs none",
    "rollout": "a larger rollout.tensor_parallel, more rollout.gpu_memory_utilization, or a shorter rollout.max_model_len",
    "placement": "more nodes, or fewer ranks and actors",
    "host": "fewer ranks and actors a node, no learner.offload, or nodes with more memory (plan.host_memory_gb)",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """What does not fit, and which knobs bear on it; `excess` is by how many bytes, to compare two plans by."""

    role: str
    what: str
    remedy: str
    excess: int


@dataclass(frozen=True, slots=True)
class StagePlan:
    """A stage: memory by role, a step's phases, and how many answers and answer tokens a step makes."""

    stage: str
    steps: int
    roles: tuple[RoleMemory, ...]
    phases: tuple[Phase, ...]
    answers: int
    answer_tokens: float

    @property
    def step_seconds(self) -> float:
        return step_seconds(self.phases)

    @property
    def seconds(self) -> float:
        return self.steps * self.step_seconds


@dataclass(frozen=True, slots=True)
class Plan:
    """`hardware` is None where the recipe runs on CPU: then memory of the host is all that is planned."""

    name: str
    hardware: Hardware | None
    shape: ModelShape
    workload: Workload
    stages: tuple[StagePlan, ...]
    places: Places
    kv: KvCache | None
    host: HostMemory
    host_bytes: int
    disk_bytes: int
    validation_samples: int
    problems: tuple[Problem, ...]

    @property
    def fits(self) -> bool:
        return not self.problems

    @property
    def gpus_used(self) -> int:
        """GPUs that roles are given; the others of the nodes stand idle."""
        return gpus_of(all_roles(stage.roles for stage in self.stages))

    @property
    def hours(self) -> float:
        """Of the whole recipe, without starting up."""
        return sum(stage.seconds for stage in self.stages) / 3600

    @property
    def gpu_hours(self) -> float:
        """Nodes are paid for whole."""
        return self.hours * self.hardware.gpus if self.hardware else 0.0

    @property
    def usd(self) -> float | None:
        price = self.hardware.usd_per_gpu_hour if self.hardware else None
        return None if price is None else self.gpu_hours * price


def make_plan(recipe: Recipe, workload: Workload | None = None) -> Plan:
    """The plan of a recipe on the machines of its section `plan`.

    `workload` where it is known already. Raises ValueError for a model that is not known.
    """
    shape = shape_of(recipe.model)
    lengths = workload or workload_of(recipe, shape)
    if recipe.plan.answer_tokens is not None:
        lengths = _with_answers(lengths, recipe.plan.answer_tokens)
    hardware = hardware_of(recipe.plan)
    if hardware is None:
        return _on_cpu(recipe, shape, lengths)
    samples = _validation_samples(recipe)
    capacity = hardware.gpu.memory_bytes
    kv = kv_cache(recipe, shape, lengths, hardware.gpu)
    held = {stage: role_memories(recipe, shape, lengths, stage, hardware.gpu) for stage in recipe.stages}
    roles = all_roles(held.values())
    where = places(roles, hardware.nodes, hardware.gpus_per_node)
    host = host_memory(recipe, shape, hardware.nodes, hardware.gpus_per_node)
    situations = [
        Situation(recipe, stage, shape, lengths, Machine(hardware, recipe.plan), where, kv, samples)
        for stage in recipe.stages
    ]
    stages = tuple(_stage(at, held[at.stage]) for at in situations)
    found = [
        *_gpu_problems(stages, capacity),
        *_kv_problems(recipe, kv),
        *_placement_problems(where, gpus_of(roles), hardware),
    ]
    return Plan(
        name=recipe.name,
        hardware=hardware,
        shape=shape,
        workload=lengths,
        stages=stages,
        places=where,
        kv=kv,
        host=host,
        host_bytes=hardware.host_bytes,
        disk_bytes=_disk_bytes(situations),
        validation_samples=samples,
        problems=(*found, *_host_problems(host, hardware.host_bytes)),
    )


def _with_answers(workload: Workload, mean: float) -> Workload:
    sources = tuple(source for source in workload.sources if source[0] != "answer_tokens")
    longest = max(workload.answer_tokens_max, int(mean))
    return replace(
        workload,
        answer_tokens=mean,
        answer_tokens_max=longest,
        sources=(*sources, ("answer_tokens", "recipe", "plan.answer_tokens")),
    )


def cpu_problems(recipe: Recipe, shape: ModelShape) -> tuple[Problem, ...]:
    """All actors on one machine: does its memory hold them."""
    return tuple(_host_problems(host_memory(recipe, shape, 1, 0), machine_memory()))


def _on_cpu(recipe: Recipe, shape: ModelShape, workload: Workload) -> Plan:
    return Plan(
        name=recipe.name,
        hardware=None,
        shape=shape,
        workload=workload,
        stages=(),
        places=Places({}, None),
        kv=None,
        host=host_memory(recipe, shape, 1, 0),
        host_bytes=machine_memory(),
        disk_bytes=0,
        validation_samples=0,
        problems=cpu_problems(recipe, shape),
    )


def machine_memory() -> int:
    """Bytes of memory of this machine, or of the container this runs in where that is less."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    allowed = limit.read_text().strip() if limit.is_file() else "max"
    return whole if allowed == "max" else min(whole, int(allowed))


def _validation_samples(recipe: Recipe) -> int:
    wanted = recipe.validation.samples
    if not Path(recipe.data.validation).is_dir():
        return wanted or VALIDATION_SAMPLES.get(recipe.reward.name, 500)
    from data.store import SampleStore

    there = len(SampleStore(recipe.data.validation, split="validation"))
    return min(wanted or there, there)


def all_roles(stages: Iterable[Sequence[RoleMemory]]) -> list[RoleMemory]:
    """Every role of any stage once: places are reserved for the whole run."""
    return list({role.role: role for roles in stages for role in roles}.values())


def gpus_of(roles: Sequence[RoleMemory]) -> int:
    return sum(role.actors * role.gpus_per_actor for role in roles)


def _stage(at: Situation, roles: tuple[RoleMemory, ...]) -> StagePlan:
    answers = at.groups * at.answers
    return StagePlan(at.stage, at.steps, roles, phases_of(at), answers, answers * at.workload.answer_tokens)


def usable(role: str, capacity: int) -> int:
    """What a role's parts may take of a GPU."""
    return capacity if role == "rollout" else int(USABLE * capacity)


def _gpu_problems(stages: Sequence[StagePlan], capacity: int) -> Iterator[Problem]:
    """One a role: its worst stage."""
    worst: dict[str, tuple[RoleMemory, str]] = {}
    for stage in stages:
        for role in stage.roles:
            if role.role not in worst or role.total > worst[role.role][0].total:
                worst[role.role] = (role, stage.stage)
    for role, stage_name in worst.values():
        most = usable(role.role, capacity)
        if role.total > most:
            largest = max(role.items, key=lambda item: item.bytes)
            what = (
                f"{stage_name}: a {role.role} GPU needs {gib(role.total)} of {gib(capacity)} ({gib(most)} usable), "
                f"{gib(largest.bytes)} of it {largest.name}"
            )
            remedy = "; ".join(REMEDIES[name] for name in role.role.split("+"))
            yield Problem(role.role, what, remedy, role.total - most)


def _kv_problems(recipe: Recipe, kv: KvCache) -> Iterator[Problem]:
    """An engine that cannot hold one sequence of max_model_len does not start."""
    if kv.longest >= 1:
        return
    needed = kv.bytes_per_token * recipe.rollout.max_model_len
    there = f"{gib(kv.bytes)} are left" if kv.bytes > 0 else f"{gib(-kv.bytes)} are missing for its weights alone"
    what = f"a sampler's cache cannot hold one sequence of {recipe.rollout.max_model_len} tokens ({gib(needed)}): {there}"
    yield Problem("rollout", what, REMEDIES["rollout"], needed - kv.bytes)


def _placement_problems(where: Places, asked: int, hardware: Hardware) -> Iterator[Problem]:
    if where.missing is not None:
        lacking = max(1, asked - hardware.gpus)
        yield Problem("placement", where.missing, REMEDIES["placement"], lacking * hardware.gpu.memory_bytes)


def _host_problems(host: HostMemory, there: int) -> Iterator[Problem]:
    if host.total > there:
        largest = max(host.items, key=lambda item: item.bytes)
        what = f"a node's memory must hold {gib(host.total)}, it has {gib(there)}; {gib(largest.bytes)} of it {largest.name}"
        yield Problem("host", what, REMEDIES["host"], host.total - there)


def _disk_bytes(stages: Sequence[Situation]) -> int:
    """Every stage's checkpoints that stay, one being written before its oldest goes, and the exported policy."""
    each = [learning.checkpoint_bytes(at) for at in stages]
    kept = sum(at.recipe.checkpoint.keep * size for at, size in zip(stages, each, strict=True))
    return kept + max(each) + stages[-1].shape.numel * stages[-1].compute_bytes


def gib(size: float) -> str:
    return f"{size / (1 << 30):.1f} GiB"
