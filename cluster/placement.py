"""Reserves the cluster's resources for every role before anything is loaded, or says what is missing.

    roles ─► pack (cluster/packing.py) ─► one placement group: a bundle a worker, each bound to its node ─► slots

One group, so that all roles are reserved or none, and bound to nodes, because Ray's own packing looks at one group at a
time: it may scatter a small role over the machines that a large one needs whole.

Colocated roles share GPUs: a bundle then holds the GPUs of one tensor-parallel worker, and with it as many workers of the
other roles as those GPUs have places. Nobody in it claims a GPU of Ray's; each is told its own by CUDA_VISIBLE_DEVICES.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray._private.state import available_resources_per_node
from ray.autoscaler.sdk import request_resources
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.packing import Node, Packing, Resources, amounts, pack, shortage
from cluster.packing import RoleSpec as RoleSpec

NODE_ID_LABEL = "ray.io/node-id"
# How long a group that was seen to fit may take, and how often the cluster is looked at while nothing fits.
RESERVE_S, LOOK_S = 10.0, 0.5


class PlacementError(RuntimeError):
    """The cluster does not have what the roles ask for; the message lists both."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A reserved place for one worker: on `node`, with `env` to be set there."""

    group: PlacementGroup
    index: int
    resources: Resources
    node: Node
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def strategy(self) -> PlacementGroupSchedulingStrategy:
        # Children of an actor (Ray tasks that it starts) stay in its bundle too.
        return PlacementGroupSchedulingStrategy(self.group, self.index, placement_group_capture_child_tasks=True)


class Placement:
    """The reserved slots of every role, by name, in rank order; `shutdown` gives them back."""

    def __init__(self, group: PlacementGroup, slots: Mapping[str, list[Slot]]) -> None:
        self._group, self._slots = group, slots

    def __getitem__(self, role: str) -> list[Slot]:
        return self._slots[role]

    def shutdown(self) -> None:
        """Remove the placement group; actors still in it are killed by Ray."""
        remove_placement_group(self._group)


def place(roles: Sequence[RoleSpec], *, timeout_s: float, may_grow: bool = False, shared: Sequence[str] = ()) -> Placement:
    """Reserve every role's workers; all of them or none.

    `may_grow`: nodes may still join (an autoscaler, a SLURM job starting up), so a shortage is waited out for `timeout_s`.
    Otherwise what the cluster could never hold is refused at once. `shared` names roles that live on the same GPUs.
    Raises PlacementError, ValueError for a repeated name and for shared roles that do not cover the same GPUs.
    """
    names = [role.name for role in roles]
    if len(set(names)) != len(names):
        raise ValueError(f"every role has its own name, got {names}")
    share = _Share([role for role in roles if role.name in shared]) if shared else None
    asked = [role for role in roles if role.name not in shared]
    asked += [share.bundles] if share else []
    group, packing = _reserve(asked, time.monotonic() + timeout_s, timeout_s, may_grow)
    slots = _slots(asked, packing, group)
    if share:
        slots |= share.slots(slots.pop(share.bundles.name))
    return Placement(group, slots)


def _reserve(roles: Sequence[RoleSpec], deadline: float, timeout_s: float, may_grow: bool) -> tuple[PlacementGroup, Packing]:
    """A placement group for all roles, bundles in the roles' order."""
    bundles = [role.bundle for role in roles for _ in range(role.count)]
    grown = False
    try:
        while True:
            packing = pack(roles, _nodes(free=True))
            if packing is not None:
                labels = [{NODE_ID_LABEL: node.id} for role in roles for node in packing[role.name]]
                group = placement_group(bundles, strategy="PACK", bundle_label_selector=labels)
                if group.wait(max(1.0, min(RESERVE_S, deadline - time.monotonic()))):
                    return group, packing
                remove_placement_group(group)  # another program was faster
            missing = shortage(roles, _nodes())
            if missing and not may_grow:
                raise PlacementError(_explain(roles, missing))
            if time.monotonic() > deadline:
                missing = missing or "it has room for it, but other programs hold the resources"
                raise PlacementError(_explain(roles, f"{missing} (waited {timeout_s:g} s)"))
            if missing and not grown:
                request_resources(bundles=bundles)  # heard by an autoscaler, if there is one
                grown = True
            time.sleep(LOOK_S)
    finally:
        if grown:
            request_resources(bundles=[])


def _slots(roles: Sequence[RoleSpec], packing: Packing, group: PlacementGroup) -> dict[str, list[Slot]]:
    slots: dict[str, list[Slot]] = {}
    index = 0
    for role in roles:
        slots[role.name] = []
        for node in packing[role.name]:
            slots[role.name].append(Slot(group, index, role.bundle, node))
            index += 1
    return slots


class _Share:
    """Roles on the same GPUs. `bundles` is what is reserved for all of them, as one role of bundles."""

    def __init__(self, roles: Sequence[RoleSpec]) -> None:
        self.roles = roles
        self.width = max(role.tensor_parallel for role in roles)
        places = max(role.count * role.tensor_parallel for role in roles)
        for role in roles:
            if role.gpus not in (0.0, 1.0) or self.width % role.tensor_parallel or places % self.width:
                raise ValueError(
                    f"colocated roles cover the same GPUs, one GPU a rank, {self.width} to a bundle; {role.name} is "
                    f"{role.count} × {role.tensor_parallel} ranks of {role.gpus:g} GPU"
                )
        count = places // self.width
        cpus = sum(role.cpus * (self.width // role.tensor_parallel) for role in roles)
        gpus = max(role.gpus for role in roles)
        self.bundles = RoleSpec("+".join(role.name for role in roles), count, cpus, gpus, self.width, together=True)

    def slots(self, bundles: Sequence[Slot]) -> dict[str, list[Slot]]:
        """Every role's slots: rank r of t ranks a worker has the GPUs r·t … r·t + t − 1, counted over the bundles."""
        devices = [device for bundle in bundles for device in _gpus_of(bundle, self.width if self.bundles.gpus else 0)]
        slots: dict[str, list[Slot]] = {}
        for role in self.roles:
            slots[role.name] = []
            for first in range(0, role.count * role.tensor_parallel, role.tensor_parallel):
                bundle = bundles[first // self.width]
                env = _see(devices[first : first + role.tensor_parallel]) if devices else {}
                slots[role.name].append(Slot(bundle.group, bundle.index, {"CPU": role.cpus}, bundle.node, env))
        return slots


def _see(devices: Sequence[str]) -> dict[str, str]:
    """Ray is asked to leave alone what it would set itself."""
    return {"CUDA_VISIBLE_DEVICES": ",".join(devices), "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}


def _gpus_of(slot: Slot, count: int) -> list[str]:
    """The ids of the `count` GPUs that Ray set aside for a bundle, as a task that takes all of them is told."""
    if not count:
        return []
    remote: Any = ray.remote(_own_gpus)
    ids: list[str] = ray.get(remote.options(scheduling_strategy=slot.strategy, num_cpus=0, num_gpus=count).remote())
    return ids


def _own_gpus() -> list[str]:
    ids: list[str] = ray.get_runtime_context().get_accelerator_ids()["GPU"]
    return ids


def _nodes(free: bool = False) -> list[Node]:
    """The machines that are up, in the order of their addresses, with all resources or with those nobody has taken."""
    left = available_resources_per_node() if free else {}
    nodes = [
        Node(node["NodeID"], node["NodeManagerAddress"], left.get(node["NodeID"], {}) if free else node["Resources"])
        for node in ray.nodes()
        if node["Alive"]
    ]
    return sorted(nodes, key=lambda node: (node.address, node.id))


def _explain(roles: Sequence[RoleSpec], missing: str) -> str:
    asked = [f"  {role.name:<12} {role.count} × ({amounts(role.bundle)})" for role in roles]
    nodes = [f"  {node.address:<12} {amounts(node.resources)}" for node in _nodes()]
    free = [f"  {node.address:<12} {amounts(node.resources)}" for node in _nodes(free=True)]
    lines = [f"the cluster cannot hold this run: {missing}", "asked:", *asked, "there is:", *nodes, "free now:", *free]
    return "\n".join([*lines, "Lower the counts or the tensor-parallel size of a role, or add nodes."])
