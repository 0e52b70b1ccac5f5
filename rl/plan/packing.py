"""Which node each role's workers stand on, as cluster/placement.py packs them, or what is missing.

A worker is never cut: a sampler of four tensor-parallel ranks takes four GPUs of one node. Roles with the largest workers
choose first, and each fills the node that takes most of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Workers:
    """`count` workers of a role, each of `gpus` GPUs of one node."""

    role: str
    count: int
    gpus: int

    @property
    def total(self) -> int:
        return self.count * self.gpus


@dataclass(frozen=True, slots=True)
class Packing:
    """Workers of each role on each node, and in words what found no place (None: everything did)."""

    placed: tuple[tuple[str, tuple[int, ...]], ...]
    missing: str | None

    def nodes(self, role: str) -> int:
        """Nodes that a role spans, at least 1."""
        return max(1, sum(1 for count in self.by_node(role) if count))

    def most_on_a_node(self, role: str) -> int:
        """Workers of a role on the node that has most of them, at least 1."""
        return max([1, *self.by_node(role)])

    def by_node(self, role: str) -> tuple[int, ...]:
        return next((counts for name, counts in self.placed if name == role), ())


def pack(roles: Sequence[Workers], nodes: int, gpus_per_node: int) -> Packing:
    """Fill `nodes` empty nodes, larger workers first."""
    free = [gpus_per_node] * nodes
    placed, missing = [], None
    for role in sorted(roles, key=lambda role: -role.gpus):
        counts, left = [0] * nodes, role.count
        for node in sorted(range(nodes), key=lambda node: -(free[node] // role.gpus)):
            taken = min(left, free[node] // role.gpus)
            counts[node], left = taken, left - taken
            free[node] -= taken * role.gpus
        placed.append((role.role, tuple(counts)))
        missing = missing or (_shortage(role, left, roles, nodes, gpus_per_node) if left else None)
    return Packing(tuple(placed), missing)


def _shortage(role: Workers, left: int, roles: Sequence[Workers], nodes: int, gpus_per_node: int) -> str:
    asked = " + ".join(f"{other.role} {other.total}" for other in roles)
    total, there = sum(other.total for other in roles), nodes * gpus_per_node
    if role.gpus > gpus_per_node:
        return f"a {role.role} worker takes {role.gpus} GPUs of one node, a node has {gpus_per_node}"
    if total > there:
        return f"the roles ask for {total} GPUs ({asked}), {nodes} × {gpus_per_node} are {there}"
    return f"{left} of {role.count} {role.role} workers of {role.gpus} GPUs find no node with room ({asked})"
