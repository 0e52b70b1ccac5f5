"""Time of handing the weights over, by transport; under colocation also of putting one role to sleep and waking another.

The learner gathers block by block first, then each transport moves the bytes: which links they cross, and how often.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rl.plan.roofline import COPY_BYTES_PER_S, TCP_BYTES_PER_S, Cost, Phase, longest, phase
from rl.plan.situation import Situation

Moving = Callable[[Situation, float], tuple[Cost, str]]


def publish(at: Situation) -> tuple[Phase, ...]:
    """The hand-over at the end of a step."""
    adapter = bool(at.recipe.model.lora.rank) and at.recipe.model.lora.sync == "adapter"
    size = (at.shape.numel_adapter if adapter else at.shape.numel - at.shape.numel_adapter) * at.compute_bytes
    transport = at.recipe.sync.transport
    gathered = at.machine.exchange(size, at.recipe.learner.ranks, at.places.nodes("learner"))
    moved, words = TRANSPORTS[transport](at, size)
    total = Cost(gathered.seconds + moved.seconds, longest(gathered, moved).bound)
    what = "the adapter" if adapter else "all weights"
    return (phase("sync", total, f"{what}, {size / 1e9:.3g} GB, gathered, then {words}"), *_waking(at))


def _object_store(at: Situation, size: float) -> tuple[Cost, str]:
    """Rank 0 copies to shared memory; other nodes fetch one after another over TCP; every sampler copies to its GPU."""
    away = at.places.nodes("rollout") - 1
    seconds = 2 * at.machine.pcie(size).seconds + size / COPY_BYTES_PER_S + away * size / TCP_BYTES_PER_S
    return Cost(seconds, "host"), "through the object store"


def _gloo(at: Situation, size: float) -> tuple[Cost, str]:
    return Cost(2 * at.machine.pcie(size).seconds + size / TCP_BYTES_PER_S, "host"), "broadcast over TCP"


def _nccl(at: Situation, size: float) -> tuple[Cost, str]:
    together = at.machine.hardware.nodes == 1
    return at.machine.broadcast(size, 1 if together else 2), "broadcast by NCCL"


def _ipc(at: Situation, size: float) -> tuple[Cost, str]:
    return at.machine.memory(2 * size), "copied on the GPU"


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


def _waking(at: Situation) -> tuple[Phase, ...]:
    """Colocated roles take turns: the learner's state goes to host memory and comes back, once a step each."""
    if at.recipe.cluster.placement != "colocated":
        return ()
    state = (at.shape.numel * 4 + at.shape.numel_trainable * 8) / at.recipe.learner.ranks
    how = f"the learner's {state / 1e9:.3g} GB a GPU out and back over PCIe; samplers drop their weights and cache"
    return (phase("sleep, wake", at.machine.pcie(2 * state), how),)
