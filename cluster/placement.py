"""Reserves the cluster's resources for every role before anything is loaded, or says what is missing.

A role's worker is one bundle, and a bundle never straddles nodes: a rollout actor with tensor_parallel=4 gets four GPUs of
one machine. Every role has a placement group of its own, packed, so that learner ranks sit together wherever they can.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

Resources = dict[str, float]


class PlacementError(RuntimeError):
    """The cluster does not have what the roles ask for; the message lists both."""


@dataclass(frozen=True, slots=True)
class RoleSpec:
    """`count` workers of a role; each takes `cpus` logical CPUs and `gpus` GPUs for each of its tensor-parallel ranks."""

    name: str
    count: int
    cpus: float = 1.0
    gpus: float = 0.0
    tensor_parallel: int = 1

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
class Slot:
    """A reserved place for one worker."""

    group: PlacementGroup
    index: int
    resources: Resources

    @property
    def strategy(self) -> PlacementGroupSchedulingStrategy:
        # Children of an actor (Ray tasks that it starts) stay in its bundle too.
        return PlacementGroupSchedulingStrategy(self.group, self.index, placement_group_capture_child_tasks=True)


class Placement:
    """The reserved slots of every role, by name; `shutdown` gives them back."""

    def __init__(self) -> None:
        self._slots: dict[str, list[Slot]] = {}
        self._groups: list[PlacementGroup] = []

    def __getitem__(self, role: str) -> list[Slot]:
        return self._slots[role]

    def _add(self, role: RoleSpec, group: PlacementGroup) -> None:
        self._groups.append(group)
        self._slots[role.name] = [Slot(group, index, role.bundle) for index in range(role.count)]

    def shutdown(self) -> None:
        """Remove every placement group; actors still in them are killed by Ray."""
        while self._groups:
            remove_placement_group(self._groups.pop())


def place(roles: Sequence[RoleSpec], *, timeout_s: float, may_grow: bool = False) -> Placement:
    """Reserve every role's workers; all of them or none.

    `may_grow`: nodes may still join (an autoscaler, a SLURM job starting up), so a shortage is waited out for `timeout_s`.
    Otherwise what the cluster could never hold is refused at once. Raises PlacementError, ValueError for a repeated name.
    """
    names = [role.name for role in roles]
    if len(set(names)) != len(names):
        raise ValueError(f"every role has its own name, got {names}")
    if not may_grow and (missing := _shortage(roles)):
        raise PlacementError(_explain(roles, missing))
    deadline = time.monotonic() + timeout_s
    placement = Placement()
    try:
        # Roles that need many GPUs on one machine come first, before small ones scatter over the nodes.
        ordered = sorted(roles, key=lambda role: -role.bundle.get("GPU", 0.0))
        groups = {role.name: placement_group([role.bundle] * role.count, strategy="PACK") for role in ordered}
        for role in ordered:
            placement._add(role, groups[role.name])
        for role in ordered:
            if not groups[role.name].wait(max(0.0, deadline - time.monotonic())):
                missing = _shortage(roles) or f"role {role.name} found no room: other programs hold the resources"
                raise PlacementError(_explain(roles, f"{missing} (waited {timeout_s:g} s)"))
    except BaseException:
        placement.shutdown()
        raise
    return placement


def _shortage(roles: Sequence[RoleSpec]) -> str | None:
    """What even an empty cluster lacks, or None. Each machine is filled separately: a bundle does not straddle them."""
    nodes = [node["Resources"] for node in _nodes()]
    for kind in ("GPU", "CPU"):
        asked = sum(role.bundle.get(kind, 0.0) * role.count for role in roles)
        there = sum(node.get(kind, 0.0) for node in nodes)
        if asked > there:
            return f"the roles ask for {asked:g} {kind}, the cluster has {there:g}"
        largest = max((node.get(kind, 0.0) for node in nodes), default=0.0)
        for role in roles:
            if role.bundle.get(kind, 0.0) > largest:
                return f"a {role.name} worker asks one machine for {role.bundle[kind]:g} {kind}, the largest has {largest:g}"
        for role in roles:
            each = role.bundle.get(kind, 0.0)
            fit = sum(math.floor(node.get(kind, 0.0) / each) for node in nodes) if each else role.count
            if fit < role.count:
                return f"{role.count} {role.name} workers of {each:g} {kind} do not fit: whole workers fit {fit} times"
    return None


def _nodes() -> list[dict[str, Any]]:
    """The machines that are up, as Ray describes them."""
    return [node for node in ray.nodes() if node["Alive"]]


def _explain(roles: Sequence[RoleSpec], missing: str) -> str:
    asked = [f"  {role.name:<12} {role.count} × ({_amounts(role.bundle)})" for role in roles]
    nodes = [f"  {node['NodeManagerAddress']:<12} {_amounts(node['Resources'])}" for node in _nodes()]
    free = _amounts(ray.available_resources())
    lines = [f"the cluster cannot hold this run: {missing}", "asked:", *asked, "there is:", *nodes, f"free now: {free}"]
    return "\n".join([*lines, "Lower the counts or the tensor-parallel size of a role, or add nodes."])


def _amounts(resources: Resources) -> str:
    return ", ".join(f"{resources[kind]:g} {kind}" for kind in ("CPU", "GPU") if resources.get(kind)) or "nothing"
