"""Workers get nodes: never straddling, collectives on few nodes and in order, and whatever fits is found."""

from __future__ import annotations

import itertools
import random

import pytest

from cluster.packing import Node, Packing, RoleSpec, pack, shortage


def machines(*gpus: int, cpus: int = 64) -> list[Node]:
    """Nodes A, B, C, … with that many GPUs."""
    return [Node("ABCDEFGH"[at], f"10.0.0.{at}", {"CPU": float(cpus), "GPU": float(count)}) for at, count in enumerate(gpus)]


def rollouts(count: int, tensor_parallel: int = 1) -> RoleSpec:
    return RoleSpec("rollout", count, gpus=1, tensor_parallel=tensor_parallel)


def learners(count: int, name: str = "learner") -> RoleSpec:
    return RoleSpec(name, count, gpus=1, together=True)


def where(packing: Packing | None, role: str) -> str:
    assert packing is not None
    return "".join(node.id for node in packing[role])


def overfull(packing: Packing, roles: list[RoleSpec], nodes: list[Node]) -> list[str]:
    """Nodes given more than they have."""
    taken = {node.id: 0.0 for node in nodes}
    for role in roles:
        for node in packing[role.name]:
            taken[node.id] += role.bundle.get("GPU", 0.0)
    return [node.id for node in nodes if taken[node.id] > node.resources["GPU"]]


@pytest.mark.parametrize(
    ("nodes", "roles", "learner_on", "rollout_on"),
    [
        # One group a role and Ray's own packing put the learner's first ranks beside the rollouts and cut it in two.
        (machines(8, 8), [rollouts(4), learners(8)], "AAAAAAAA", "BBBB"),
        (machines(8, 8), [rollouts(1, 4), learners(12)], "AAAAAAAABBBB", "B"),
        # A learner on the first node alone would leave the two groups of eight one machine.
        (machines(8, 8, 4), [rollouts(2, 8), learners(4)], "CCCC", "AB"),
        (machines(8, 8, 8), [rollouts(2, 8), learners(6)], "AAAAAA", "BC"),
        # Two groups of five need a machine each, so the learner gets what is left of both.
        (machines(8, 8), [rollouts(2, 5), learners(6)], "AAABBB", "AB"),
        (machines(8, 8), [rollouts(5, 2), learners(6)], "AAAAAA", "ABBBB"),
        (machines(8, 8, 8, 8), [rollouts(4, 4), learners(16)], "A" * 8 + "B" * 8, "CCDD"),
    ],
)
def test_the_collective_is_on_few_nodes_in_order_and_groups_are_whole(
    nodes: list[Node], roles: list[RoleSpec], learner_on: str, rollout_on: str
) -> None:
    packing = pack(roles, nodes)
    assert (where(packing, "learner"), where(packing, "rollout")) == (learner_on, rollout_on)


def test_a_second_collective_is_kept_together_too() -> None:
    packing = pack([rollouts(2, 4), learners(8), learners(4, "reference")], machines(8, 8, 8))
    assert where(packing, "learner") == "AAAAAAAA"
    assert where(packing, "rollout") == "BB"
    assert where(packing, "reference") == "CCCC"


def test_what_needs_no_gpu_stays_off_the_gpu_machines_if_it_can() -> None:
    roles = [learners(2), RoleSpec("reward", 1, cpus=32)]
    assert where(pack(roles, machines(8, 0)), "reward") == "B"
    assert where(pack(roles, machines(8)), "reward") == "A"


def test_a_large_cpu_worker_gets_the_machine_it_needs() -> None:
    packing = pack([learners(8), RoleSpec("reward", 1, cpus=8)], machines(4, 4, 4, cpus=8))
    assert packing is not None
    assert set(where(packing, "learner")) | set(where(packing, "reward")) == {"A", "B", "C"}


def _fits_somehow(sizes: list[int], room: list[int]) -> bool:
    """Every way to deal out bundles to machines."""
    return any(
        all(
            sum(size for size, at in zip(sizes, places, strict=True) if at == node) <= room[node]
            for node in range(len(room))
        )
        for places in itertools.product(range(len(room)), repeat=len(sizes))
    )


def test_whatever_fits_is_found_and_only_that() -> None:
    """Against all arrangements, on three hundred small clusters."""
    draw = random.Random(0)
    found = 0
    for _ in range(300):
        gpus = [draw.randint(1, 5) for _ in range(draw.randint(1, 3))]
        size, groups, ranks = draw.randint(1, 4), draw.randint(1, 3), draw.randint(1, 4)
        roles = [rollouts(groups, size), learners(ranks)]
        nodes = machines(*gpus)
        packing = pack(roles, nodes)
        assert (packing is not None) == _fits_somehow([size] * groups + [1] * ranks, gpus), (gpus, size, groups, ranks)
        assert (shortage(roles, nodes) is None) == (packing is not None)
        if packing is not None:
            found += 1
            assert overfull(packing, roles, nodes) == []
            ranks_on = where(packing, "learner")
            assert len(list(itertools.groupby(ranks_on))) == len(set(ranks_on))
    assert 100 < found < 250


@pytest.mark.parametrize(
    ("nodes", "roles", "words"),
    [
        (machines(8, 8), [rollouts(4, 4)], None),
        (machines(8, 8), [rollouts(1, 16)], "a rollout worker asks one machine for 16 GPU, the largest has 8"),
        (machines(8, 8), [rollouts(4, 5)], "ask for 20 GPU, the cluster has 16"),
        (machines(8, 8), [rollouts(3, 5)], "3 rollout workers of 1 CPU, 5 GPU do not fit: whole workers fit 2 times"),
        (machines(8, 8), [rollouts(2, 8), learners(6)], "ask for 22 GPU, the cluster has 16"),
        (machines(8, 8), [RoleSpec("learner", 65, cpus=2)], "ask for 130 CPU, the cluster has 128"),
        (machines(6, 6), [RoleSpec("x", 2, gpus=3), RoleSpec("y", 1, gpus=4)], None),
        (machines(5, 5), [RoleSpec("x", 2, gpus=3), RoleSpec("y", 1, gpus=4)], "the totals would do, but no arrangement"),
    ],
)
def test_a_shortage_is_named(nodes: list[Node], roles: list[RoleSpec], words: str | None) -> None:
    missing = shortage(roles, nodes)
    assert missing is None if words is None else words in (missing or "")


def test_shares_of_a_gpu_add_up_without_rounding() -> None:
    assert pack([RoleSpec("x", 10, cpus=0, gpus=0.1)], machines(1)) is not None


def test_tensor_parallel_ranks_share_one_bundle() -> None:
    assert RoleSpec("rollout", 2, cpus=4, gpus=1, tensor_parallel=4).bundle == {"CPU": 4.0, "GPU": 4.0}


@pytest.mark.parametrize("wrong", [{"count": 0}, {"tensor_parallel": 0}, {"cpus": -1.0}, {"cpus": 0.0, "gpus": 0.0}])
def test_a_role_that_asks_for_nothing_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="role learner"):
        RoleSpec(**{"name": "learner", "count": 1, **wrong})  # type: ignore[arg-type]
