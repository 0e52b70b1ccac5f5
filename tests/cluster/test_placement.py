"""Roles get their bundles, or an error that lists what was asked and what there is."""

from __future__ import annotations

import pytest
import ray

from cluster.placement import PlacementError, RoleSpec, place
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
        with pytest.raises(PlacementError, match="other programs hold the resources"):
            place([RoleSpec("reward", 1), RoleSpec("learner", 2)], timeout_s=1)
    finally:
        holder.shutdown()
    # The half that had been placed was given back.
    place([RoleSpec("everything", 1, cpus=CPUS)], timeout_s=60).shutdown()


def test_nodes_that_may_still_join_are_waited_for(session: Session) -> None:
    with pytest.raises(PlacementError, match="waited 1 s"):
        place([RoleSpec("learner", CPUS + 1)], timeout_s=1, may_grow=True)


def test_colocated_roles_take_one_bundle_between_them(session: Session) -> None:
    """Without GPUs there is nothing to see, but the bundles and the ranks in them are the same."""
    roles = [RoleSpec("rollout", 2, tensor_parallel=2), RoleSpec("learner", 4), RoleSpec("reward", 1)]
    placement = place(roles, timeout_s=60, shared=("rollout", "learner"))
    rollout, learner = placement["rollout"], placement["learner"]
    assert [slot.index for slot in learner] == [rollout[0].index] * 2 + [rollout[1].index] * 2
    assert placement["reward"][0].index not in {slot.index for slot in learner}
    assert all(slot.env == {} and slot.resources == {"CPU": 1.0} for slot in (*rollout, *learner))
    placement.shutdown()


@pytest.mark.parametrize(
    ("roles", "words"),
    [
        (
            [RoleSpec("rollout", 1, gpus=1, tensor_parallel=4), RoleSpec("learner", 6, gpus=1)],
            "4 to a bundle; rollout is 1 × 4",
        ),
        ([RoleSpec("rollout", 1, gpus=0.5), RoleSpec("learner", 1, gpus=0.5)], "rollout is 1 × 1 ranks of 0.5 GPU"),
    ],
)
def test_roles_that_cannot_cover_the_same_gpus_are_refused(roles: list[RoleSpec], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        place(roles, timeout_s=1, shared=("rollout", "learner"))


def test_two_roles_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="own name"):
        place([RoleSpec("learner", 1), RoleSpec("learner", 1)], timeout_s=1)
