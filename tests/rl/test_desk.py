"""The desk: dealt in turn while all fit, kept back where they do not, to whoever has room first."""

from __future__ import annotations

from dataclasses import replace

from rl.actors.desk import Desk, Waiting
from rl.protocols import GroupRequest
from rl.records import Sampling
from tests.rl.test_batch import sample

FOUR = Sampling(n=4, temperature=1.0, top_p=1.0, max_tokens=8)


def requests(count: int, first: int = 0, sampling: Sampling = FOUR) -> list[Waiting]:
    return [(GroupRequest(first + n, sample(n), sampling), f"reference {n}") for n in range(count)]


def tickets(dealt: dict[int, list[Waiting]]) -> dict[int, list[int]]:
    return {sampler: [request.ticket for request, _ in share] for sampler, share in dealt.items()}


def test_what_fits_is_dealt_in_turn_and_at_once() -> None:
    desk = Desk(samplers=3, room=8)
    assert desk.busy == set()
    assert tickets(desk.take_on(requests(6))) == {0: [0, 3], 1: [1, 4], 2: [2, 5]}
    assert desk.busy == {0, 1, 2}
    assert desk.settle(range(6)) == {}
    assert desk.busy == set()


def test_what_does_not_fit_waits_for_whoever_has_room_first() -> None:
    desk = Desk(samplers=2, room=8)
    assert tickets(desk.take_on(requests(9))) == {0: [0, 2], 1: [1, 3]}
    assert tickets(desk.settle([3, 1])) == {1: [4, 5]}
    assert tickets(desk.settle([5])) == {1: [6]}
    assert tickets(desk.settle([0, 2, 4, 6])) == {0: [7], 1: [8]}
    assert desk.settle([7, 8]) == {}
    assert desk.busy == set()


def test_a_group_larger_than_the_room_goes_to_an_idle_sampler() -> None:
    desk = Desk(samplers=2, room=8)
    large = replace(FOUR, n=16)
    assert tickets(desk.take_on(requests(3, sampling=large))) == {0: [0], 1: [1]}
    assert tickets(desk.settle([1])) == {1: [2]}


def test_a_lone_sampler_takes_all() -> None:
    """Nobody else could have them earlier, and its engine has a queue of its own."""
    assert tickets(Desk(samplers=1, room=8).take_on(requests(5))) == {0: [0, 1, 2, 3, 4]}
