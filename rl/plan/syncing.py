"""Time of handing the weights over, by transport; under colocation also of putting one role to sleep and waking another.

The learner gathers block by block first, then each transport moves the bytes: which links they cross, and how often.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rl.plan.rollout_memory import weight_bytes
from rl.plan.roofline import COPY_BYTES_PER_S, HASH_BYTES_PER_S, TCP_BYTES_PER_S, Cost, Phase, longest, phase
from rl.plan.sharding import FLOAT
from rl.plan.situation import Situation

Moving = Callable[[Situation, float], tuple[Cost, str]]


def publish(at: Situation) -> tuple[Phase, ...]:
    """The hand-over at the end of a step. Adapters travel through host memory: vLLM reads them from a file."""
    adapter = adapters_alone(at)
    size = (at.shape.numel_adapter if adapter else at.shape.numel - at.shape.numel_adapter) * at.compute_bytes
    gathered = at.machine.exchange(size, at.recipe.learner.ranks, at.places.nodes("learner"))
    moved, words = TRANSPORTS["gloo" if adapter else at.recipe.sync.transport](at, size)
    total = Cost(gathered.seconds + moved.seconds, longest(gathered, moved).bound)
    what = "the adapter" if adapter else "all weights"
    return (*_taking_turns(at), phase("sync", total, f"{what}, {size / 1e9:.3g} GB, gathered, then {words}"))


def adapters_alone(at: Situation) -> bool:
    return bool(at.recipe.model.lora.rank) and at.recipe.model.lora.sync == "adapter"


def _object_store(at: Situation, size: float) -> tuple[Cost, str]:
    """Rank 0 copies to shared memory; other nodes fetch one after another over TCP; every sampler copies to its GPU."""
    away = at.places.nodes("rollout") - 1
    seconds = 2 * at.machine.pcie(size).seconds + size / COPY_BYTES_PER_S + away * size / TCP_BYTES_PER_S
    return Cost(seconds, "host"), "through the object store"


def _gloo(at: Situation, size: float) -> tuple[Cost, str]:
    return Cost(2 * at.machine.pcie(size).seconds + size / TCP_BYTES_PER_S, "host"), "broadcast over TCP"


def _nccl(at: Situation, size: float) -> tuple[Cost, str]:
    together = at.machine.hardware.nodes == 1
    return _checksummed(at, size, at.machine.broadcast(size, 1 if together else 2), "broadcast by NCCL")


def _ipc(at: Situation, size: float) -> tuple[Cost, str]:
    return _checksummed(at, size, at.machine.memory(2 * size), "copied on the GPU")


def _checksummed(at: Situation, size: float, moved: Cost, words: str) -> tuple[Cost, str]:
    """Either side copies what passes to its host, through pageable memory, and sums it up there; every worker does, at once.

    The sides overlap in part, but pageable copies fall short of the link's speed: both sides are counted.
    """
    copied, hashed = at.machine.pcie(size), Cost(size / HASH_BYTES_PER_S, "host")
    total = Cost(moved.seconds + 2 * (copied.seconds + hashed.seconds), longest(moved, copied, hashed).bound)
    return total, (
        f"{words} in {moved.seconds:.2g} s; checksums on two sides, each {copied.seconds:.2g} s down PCIe + "
        f"{hashed.seconds:.2g} s hashed"
    )


def _auto(at: Situation, size: float) -> tuple[Cost, str]:
    colocated = at.recipe.cluster.placement == "colocated"
    return (_ipc if colocated else _nccl)(at, size)


TRANSPORTS: Mapping[str, Moving] = {
    "object_store": _object_store,
    "gloo": _gloo,
    "nccl": _nccl,
    "ipc": _ipc,
    "auto": _auto,
}


def _taking_turns(at: Situation) -> tuple[Phase, ...]:
    """Colocated roles go to host memory and come back, once a step each; samplers keep weights only under adapters."""
    recipe, shape = at.recipe, at.shape
    if recipe.cluster.placement != "colocated":
        return ()
    learner = FLOAT * (shape.numel + 2 * shape.numel_trainable) / recipe.learner.ranks
    separate = recipe.algorithm.kl_coefficient and recipe.reference.placement == "actor"
    reference = FLOAT * shape.numel / recipe.reference.ranks if separate else 0.0
    kept = weight_bytes(recipe, shape) if adapters_alone(at) else 0
    size = learner + reference + kept
    how = (
        f"out and in over PCIe, {size / 1e9:.3g} GB a GPU: learner {learner / 1e9:.3g}, reference {reference / 1e9:.3g}, "
        f"samplers {kept / 1e9:.3g}"
    )
    return (phase("sleep, wake", at.machine.pcie(2 * size), how),)
