"""Which node gets which worker, worked out before anything is reserved. Pure arithmetic: no Ray.

    roles, nodes' free resources ─► pack ─► rollout  [B, C]
                                            learner  [A, A, A, A, A, A, A, A]     rank order is node order

A worker never straddles nodes, so a tensor-parallel group sits on one machine. The ranks of a role that is `together` fill
as few nodes as they can, one after the other: ranks that are neighbours share a machine and its NVLink.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

Resources = dict[str, float]

# Ray counts in ten-thousandths; sums of shares must not fail by a rounding.
EPSILON = 1e-6


@dataclass(frozen=True, slots=True)
class RoleSpec:
    """`count` workers of a role; each takes `cpus` logical CPUs and `gpus` GPUs for each of its tensor-parallel ranks.

    `together`: its workers are ranks of one collective and belong on as few nodes as possible.
    """

    name: str
    count: int
    cpus: float = 1.0
    gpus: float = 0.0
    tensor_parallel: int = 1
    together: bool = False

    def __post_init__(self) -> None:
        if self.count < 1 or self.tensor_parallel < 1:
            raise ValueError(f"role {self.name}: count and tensor_parallel are at least 1, got {self}")
        if self.cpus < 0 or self.gpus < 0 or self.cpus + self.gpus == 0:
            raise ValueError(f"role {self.name}: a worker needs some CPU or GPU, got cpus={self.cpus}, gpus={self.gpus}")

    @property
    def bundle(self) -> Resources:
        """What one worker takes, in Ray's names."""
        asked = {"CPU": float(self.cpus), "GPU": float(self.gpus * self.tensor_parallel)}
        return {kind: amount for kind, amount in asked.items() if amount > 0}


@dataclass(frozen=True, slots=True)
class Node:
    """A machine: Ray's id, its address for messages, and its resources (all of them, or the free ones)."""

    id: str
    address: str
    resources: Mapping[str, float]


Packing = dict[str, list[Node]]
"""The node of every worker, by role, in rank order."""


class _Room:
    """What is left on every node while workers are given places."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = list(nodes)
        self.left = {node.id: dict(node.resources) for node in nodes}

    def fits(self, bundle: Resources, node: Node) -> int:
        """How many such bundles the node still holds."""
        left = self.left[node.id]
        return min(int((left.get(kind, 0.0) + EPSILON) // amount) for kind, amount in bundle.items())

    def take(self, bundle: Resources, node: Node) -> None:
        for kind, amount in bundle.items():
            self.left[node.id][kind] -= amount

    def free(self, kind: str, node: Node) -> float:
        return self.left[node.id].get(kind, 0.0)

    def fill(self, role: RoleSpec, nodes: Sequence[Node]) -> list[Node] | None:
        """The role's workers on `nodes`, each filled before the next; None when they do not hold all."""
        placed: list[Node] = []
        for node in nodes:
            for _ in range(min(self.fits(role.bundle, node), role.count - len(placed))):
                self.take(role.bundle, node)
                placed.append(node)
        return placed if len(placed) == role.count else None

    def tightest(self, role: RoleSpec) -> list[Node]:
        """Nodes with the least left first: what stays whole is kept for whoever needs a whole machine.

        A role without GPUs goes to machines without any first, and there to the emptiest.
        """
        if "GPU" in role.bundle:
            return sorted(self.nodes, key=lambda node: self.free("GPU", node))
        return sorted(self.nodes, key=lambda node: (self.free("GPU", node), -self.free("CPU", node)))

    def windows(self, role: RoleSpec) -> Iterator[list[Node]]:
        """The smallest sets of nodes that could hold the role: neighbours in the order of how much they hold."""
        holding = sorted((node for node in self.nodes if self.fits(role.bundle, node)), key=self._size)
        sizes = [self.fits(role.bundle, node) for node in holding]
        for length in range(1, len(holding) + 1):
            starts = [at for at in range(len(holding) - length + 1) if sum(sizes[at : at + length]) >= role.count]
            if starts:
                yield from (holding[at : at + length] for at in starts)
                return

    def _size(self, node: Node) -> tuple[float, float]:
        return self.free("GPU", node), self.free("CPU", node)


def pack(roles: Sequence[RoleSpec], nodes: Sequence[Node]) -> Packing | None:
    """A node for every worker, or None.

    First with the leading `together` role on each smallest set of nodes that holds it; if nothing else fits around it, with
    the largest bundles first, wherever that leaves the collective. With bundles of one GPU and of one other size nothing
    that fits is missed, as long as CPUs are not what is short.
    """
    leading = [role for role in roles if role.together]
    others = sorted((role for role in roles if not role.together), key=_most("GPU"), reverse=True)
    for window in _Room(nodes).windows(leading[0]) if leading else ():
        room = _Room(nodes)
        head = room.fill(leading[0], window)
        rest = _in_order(room, [*_with_gpus(others), *leading[1:], *_without_gpus(others)])
        if head is not None and rest is not None:
            return {leading[0].name: head} | rest
    for kind in ("GPU", "CPU"):
        found = _in_order(_Room(nodes), sorted(roles, key=_most(kind), reverse=True))
        if found is not None:
            return found
    return None


def _in_order(room: _Room, roles: Sequence[RoleSpec]) -> Packing | None:
    packing: Packing = {}
    for role in roles:
        nodes = next(room.windows(role), []) if role.together else room.tightest(role)
        placed = room.fill(role, nodes)
        if placed is None:
            return None
        packing[role.name] = placed
    return packing


def _most(kind: str) -> Callable[[RoleSpec], float]:
    return lambda role: role.bundle.get(kind, 0.0)


def _with_gpus(roles: Sequence[RoleSpec]) -> list[RoleSpec]:
    return [role for role in roles if "GPU" in role.bundle]


def _without_gpus(roles: Sequence[RoleSpec]) -> list[RoleSpec]:
    return [role for role in roles if "GPU" not in role.bundle]


def shortage(roles: Sequence[RoleSpec], nodes: Sequence[Node]) -> str | None:
    """What even empty `nodes` lack, in words, or None: a total, a machine large enough, or a way to pack them."""
    for kind in ("GPU", "CPU"):
        there = [node.resources.get(kind, 0.0) for node in nodes]
        asked = sum(role.bundle.get(kind, 0.0) * role.count for role in roles)
        if asked > sum(there) + EPSILON:
            return f"the roles ask for {asked:g} {kind}, the cluster has {sum(there):g}"
        largest = max(there, default=0.0)
        for role in roles:
            each = role.bundle.get(kind, 0.0)
            if each > largest:
                return f"a {role.name} worker asks one machine for {each:g} {kind}, the largest has {largest:g}"
    for role in roles:
        fit = sum(_Room(nodes).fits(role.bundle, node) for node in nodes)
        if fit < role.count:
            return f"{role.count} {role.name} workers of {amounts(role.bundle)} do not fit: whole workers fit {fit} times"
    if pack(roles, nodes) is None:
        return "the totals would do, but no arrangement was found in which every worker is on one machine"
    return None


def amounts(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{resources[kind]:g} {kind}" for kind in ("CPU", "GPU") if resources.get(kind)) or "nothing"
