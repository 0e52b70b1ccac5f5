"""Roles get their bundles, or an error that lists what was asked and what there is."""

from __future__ import annotations

import pytest
import ray

from cluster.placement import PlacementError, RoleSpec, _shortage, place
from cluster.session import Session
from tests.cluster.conftest import CPUS


def test_every_role_has_its_slots_and_gives_them_back(session: Session) -> None:
    before = ray.available_resources()["CPU"]
    placement = place([RoleSpec("learner", 2), RoleSpec("reward", 1, cpus=3)], timeout_s=60)
    assert [slot.index for slot in placement["learner"]] == [0, 1]
    assert [slot.resources for slot in placement["reward"]] == [{"CPU": 3.0}]
    placement.shutdown()
    again = place([RoleSpec("everything", 1, cpus=before)], timeout_s=60)
    again.shutdown()


def test_tensor_parallel_ranks_share_one_bundle() -> None:
    assert RoleSpec("rollout", 2, cpus=4, gpus=1, tensor_parallel=4).bundle == {"CPU": 4.0, "GPU": 4.0}


@pytest.mark.parametrize(
    ("roles", "words"),
    [
        ([RoleSpec("learner", CPUS + 1)], f"the roles ask for {CPUS + 1} CPU, the cluster has {CPUS}"),
        (
            [RoleSpec("rollout", 1, gpus=1, tensor_parallel=2), RoleSpec("learner", 2)],
            "the roles ask for 2 GPU, the cluster has 0",
        ),
    ],
)
def test_what_the_cluster_can_never_hold_is_refused_at_once(session: Session, roles: list[RoleSpec], words: str) -> None:
    with pytest.raises(PlacementError) as refused:
        place(roles, timeout_s=3600)
    message = str(refused.value)
    assert words in message and "there is:" in message
    assert all(f"{role.name:<12} {role.count} × (" in message for role in roles)


def test_resources_held_by_others_are_waited_for_and_then_refused(session: Session) -> None:
    holder = place([RoleSpec("holder", 1, cpus=CPUS - 1)], timeout_s=60)
    try:
        with pytest.raises(PlacementError, match="found no room: other programs hold the resources"):
            place([RoleSpec("reward", 1), RoleSpec("learner", 2)], timeout_s=1)
    finally:
        holder.shutdown()
    # The half that had been placed was given back.
    place([RoleSpec("everything", 1, cpus=CPUS)], timeout_s=60).shutdown()


def test_nodes_that_may_still_join_are_waited_for(session: Session) -> None:
    with pytest.raises(PlacementError, match="waited 1 s"):
        place([RoleSpec("learner", CPUS + 1)], timeout_s=1, may_grow=True)


@pytest.mark.parametrize(
    ("role", "words"),
    [
        (RoleSpec("rollout", 4, gpus=1, tensor_parallel=4), None),
        (RoleSpec("rollout", 1, gpus=1, tensor_parallel=16), "asks one machine for 16 GPU, the largest has 8"),
        (RoleSpec("rollout", 4, gpus=1, tensor_parallel=5), "ask for 20 GPU, the cluster has 16"),
        (
            RoleSpec("rollout", 3, gpus=1, tensor_parallel=5),
            "3 rollout workers of 5 GPU do not fit",
        ),
    ],
)
def test_a_worker_never_straddles_machines(monkeypatch: pytest.MonkeyPatch, role: RoleSpec, words: str | None) -> None:
    """Two machines of eight GPUs, as ray.nodes() would list them."""
    nodes = [{"Alive": True, "NodeManagerAddress": f"10.0.0.{i}", "Resources": {"CPU": 64.0, "GPU": 8.0}} for i in (1, 2)]
    monkeypatch.setattr("cluster.placement.ray.nodes", lambda: nodes)
    missing = _shortage([role])
    assert missing is None if words is None else words in (missing or "")


@pytest.mark.parametrize("wrong", [{"count": 0}, {"tensor_parallel": 0}, {"cpus": -1.0}, {"cpus": 0.0, "gpus": 0.0}])
def test_a_role_that_asks_for_nothing_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="role learner"):
        RoleSpec(**{"name": "learner", "count": 1, **wrong})  # type: ignore[arg-type]


def test_two_roles_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="own name"):
        place([RoleSpec("learner", 1), RoleSpec("learner", 1)], timeout_s=1)
