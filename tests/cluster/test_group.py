"""Actor groups: results in rank order, and failures that name the role, the rank and the cause."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from cluster.group import ActorError, ActorGroup
from cluster.placement import Placement
from tests.cluster.workers import Worker


def start(placement: Placement, fail: str = "") -> ActorGroup:
    """Two workers; the second one fails as told."""
    kwargs: list[dict[str, Any]] = [{"rank": 0}, {"rank": 1, "fail": fail}]
    env = {"SIGHTLINE_TEST": "set"}
    return ActorGroup.start("worker", Worker, placement["worker"], kwargs_each=kwargs, env_vars=env, timeout_s=120)


@pytest.fixture
def group(placement: Placement) -> Iterator[ActorGroup]:
    group = start(placement)
    yield group
    group.shutdown()


def comes_true(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def test_results_come_in_rank_order_whoever_answers_first(group: ActorGroup) -> None:
    assert group.call_all("name", suffix="!") == ["rank0!", "rank1!"]
    assert group.call_each("name", [("a",), ("b",)]) == ["a0", "b1"]
    pending = group.submit_all("name")
    assert group.collect("name", pending) == ["rank0", "rank1"]


def test_environment_and_processes_are_the_actors_own(group: ActorGroup) -> None:
    assert group.call_all("environment", "SIGHTLINE_TEST") == ["set", "set"]
    assert len({*group.run_all(os.getpid), os.getpid()}) == 3


def test_the_rendezvous_is_on_loopback_and_its_port_is_free(group: ActorGroup) -> None:
    host, port = group.rendezvous()
    assert host == "127.0.0.1"
    with socket.socket() as listener:
        listener.bind((host, port))


def test_wrong_numbers_of_arguments_are_refused(group: ActorGroup, placement: Placement) -> None:
    with pytest.raises(ValueError, match="2 ranks need as many argument lists, got 1"):
        group.call_each("name", [("a",)])
    with pytest.raises(ValueError, match="2 slots need as many kwargs, got 1"):
        ActorGroup.start("worker", Worker, placement["worker"], kwargs_each=[{}], timeout_s=60)


def test_a_raising_rank_fails_the_call_although_the_others_hang(placement: Placement) -> None:
    group = start(placement)
    with pytest.raises(ActorError, match="worker rank 1 failed in fail_or_hang: OSError: no space left on device") as failed:
        group.call_all("fail_or_hang", "raise")
    assert (failed.value.role, failed.value.rank, failed.value.method) == ("worker", 1, "fail_or_hang")
    assert "workers.py" in str(failed.value)  # The remote traceback.
    group.shutdown()


def test_a_dying_rank_fails_the_call_and_shows_its_log(placement: Placement) -> None:
    group = start(placement)
    with pytest.raises(ActorError, match="worker rank 1 failed in fail_or_hang: its process died") as failed:
        group.call_all("fail_or_hang", "die")
    assert "worker 1 speaks" in str(failed.value)
    group.shutdown()


def test_a_rank_that_does_not_answer_in_time_is_named(placement: Placement) -> None:
    group = start(placement)
    with pytest.raises(ActorError, match="worker rank 0 failed in hang: not done after 1 s"):
        group.collect("hang", group.submit_each("name_or_hang", [(True,), (False,)]), timeout_s=1)
    group.shutdown()


def test_shutdown_ends_the_processes(placement: Placement) -> None:
    group = start(placement)
    pids = group.run_all(os.getpid)
    group.shutdown()
    assert len(group) == 0
    assert comes_true(lambda: not any(psutil.pid_exists(pid) for pid in pids))


@pytest.mark.parametrize(
    ("fail", "words"),
    [("raise", "KeyError: 'no checkpoint there'"), ("exit", "its process died")],
)
def test_a_constructor_that_fails_is_named_and_leaves_no_actor(placement: Placement, fail: str, words: str) -> None:
    with pytest.raises(ActorError, match=f"worker rank 1 failed in __init__: {words}") as failed:
        start(placement, fail)
    assert "worker 1 speaks" in str(failed.value) or fail == "raise"
    # Both slots are free again.
    start(placement).shutdown()
