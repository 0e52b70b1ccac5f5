"""Machines of logical GPUs on this one, for test_clusters: `python -m tests.cluster.nodes < questions.json`.

A process of its own, because the other tests of the folder have their Ray running. Every node is a raylet with an address
of its own; nothing uses the GPUs it claims. A question is answered with each role's slots, or with what was refused:

    {"nodes": [8, 8], "roles": [{…RoleSpec…}], "shared": ["learner"], "start": true, "late": 8}

`nodes`: GPUs of the machines that are free for the question; a holder takes all others. `start`: actors are started, and
say what they see, in an environment of `env` beside Ray's own. `late`: a machine of so many GPUs joins while the question
waits, and stays.
"""

from __future__ import annotations

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from ray._private import ray_constants
from ray.cluster_utils import Cluster

from cluster.config import ClusterConfig
from cluster.devices import own_device
from cluster.group import ActorGroup
from cluster.placement import Placement, PlacementError, RoleSpec, Slot, place
from cluster.session import ray_session

CPUS = 32


class Rank:
    """Says where it is: its node's address, the GPUs it sees, and which of them is its own."""

    def where(self) -> tuple[str, str, int]:
        return ray.util.get_node_ip_address(), os.environ.get("CUDA_VISIBLE_DEVICES", ""), own_device()


class Machines:
    def __init__(self, gpus: list[int]) -> None:
        self.gpus: list[int] = []
        self.cluster = Cluster()
        for count in gpus:
            self.add(count)

    def add(self, gpus: int) -> None:
        self.gpus.append(gpus)
        address = f"127.0.0.{10 + len(self.gpus)}"
        options: dict[str, Any] = {"include_dashboard": False} if len(self.gpus) == 1 else {}
        self.cluster.add_node(num_cpus=CPUS, num_gpus=gpus, node_ip_address=address, object_store_memory=80 << 20, **options)


def hold(machines: Machines, free: list[int]) -> Placement | None:
    """Take all machines but those of `free` GPUs, by what only they have room for."""
    others = list(machines.gpus)
    for count in free:
        others.remove(count)
    roles = [RoleSpec(f"held-{at}", 1, cpus=CPUS, gpus=count) for at, count in enumerate(others)]
    return place(roles, timeout_s=60) if roles else None


def placed(machines: Machines, question: dict[str, Any], roles: list[RoleSpec]) -> Placement:
    """Raylets can be started by the main thread only, so another one waits for the placement."""
    options = {"may_grow": "late" in question, "shared": question.get("shared", ())}
    with ThreadPoolExecutor(1) as waiting:
        pending = waiting.submit(place, roles, timeout_s=120, **options)
        if "late" in question:
            time.sleep(2)
            assert not pending.done()
            machines.add(question["late"])
        return pending.result()


def place_of(slot: Slot) -> tuple[str, str | None]:
    return slot.node.address, slot.env.get("CUDA_VISIBLE_DEVICES")


def answer(machines: Machines, question: dict[str, Any]) -> dict[str, Any]:
    holder = hold(machines, question["nodes"])
    roles = [RoleSpec(**role) for role in question["roles"]]
    try:
        placement = placed(machines, question, roles)
        found: dict[str, Any] = {role.name: [place_of(slot) for slot in placement[role.name]] for role in roles}
        if question.get("start"):
            env = question.get("env")
            groups = [ActorGroup.start(role.name, Rank, placement[role.name], env_vars=env, timeout_s=120) for role in roles]
            found = {group.role: group.call_all("where") for group in groups}
        placement.shutdown()
        return found
    except PlacementError as error:
        return {"refused": str(error)}
    finally:
        if holder is not None:
            holder.shutdown()


def main() -> None:
    ray_constants.ENABLE_RAY_CLUSTER = False  # loopback addresses stay what they are
    asked = json.load(sys.stdin)
    machines = Machines(asked["machines"])
    try:
        with ray_session(ClusterConfig(address=machines.cluster.address)):
            for question in asked["questions"]:
                print(json.dumps(answer(machines, question)), flush=True)
    finally:
        ray.shutdown()
        machines.cluster.shutdown()


if __name__ == "__main__":
    main()
