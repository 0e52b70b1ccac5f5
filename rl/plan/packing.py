"""Which node each role's workers would stand on: cluster/packing.py's own answer, for nodes that nobody has rented yet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.packing import Node, RoleSpec, pack, shortage
from rl.plan.memory import RoleMemory

TOGETHER = ("learner", "reference")  # ranks of one collective


@dataclass(frozen=True, slots=True)
class Places:
    """Workers of each role by node, as far as they were placed, and in words what is missing (None: nothing)."""

    by_node: Mapping[str, tuple[int, ...]]
    missing: str | None

    def nodes(self, role: str) -> int:
        """Nodes that a role spans; under colocation those that the shared GPUs span."""
        return max([1, *(len(counts) for name, counts in self.by_node.items() if role in name.split("+"))])

    def most_on_a_node(self, role: str) -> int:
        return max([1, *(max(counts) for name, counts in self.by_node.items() if role in name.split("+"))])


def places(roles: Sequence[RoleMemory], nodes: int, gpus_per_node: int) -> Places:
    """Where the GPU workers of `roles` go. Where they do not all fit, every role is placed as if it were alone."""
    specs = [_spec(role) for role in roles]
    machines = [Node(str(number), f"node {number}", {"GPU": float(gpus_per_node)}) for number in range(nodes)]
    packing = pack(specs, machines)
    if packing is not None:
        found = {name: tuple(Counter(node.id for node in where).values()) for name, where in packing.items()}
        return Places(found, None)
    return Places({spec.name: _alone(spec, gpus_per_node) for spec in specs}, shortage(specs, machines))


def _spec(role: RoleMemory) -> RoleSpec:
    together = any(name in TOGETHER for name in role.role.split("+"))
    return RoleSpec(role.role, role.actors, cpus=0.0, gpus=1.0, tensor_parallel=role.gpus_per_actor, together=together)


def _alone(spec: RoleSpec, gpus_per_node: int) -> tuple[int, ...]:
    each = max(1, gpus_per_node // spec.tensor_parallel)
    full, rest = divmod(spec.count, each)
    return (*[each] * full, *([rest] if rest else []))
