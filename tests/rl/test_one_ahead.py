"""one_ahead: everything in order, one item made while the caller works, errors at their turn, no thread left."""

from __future__ import annotations

import threading

import pytest

from rl.one_ahead import one_ahead

PATIENCE_S = 20.0


def running() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("one-ahead")]


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_results_come_in_the_order_of_the_items(count: int) -> None:
    assert list(one_ahead(lambda item: item * 10, range(count))) == [item * 10 for item in range(count)]
    assert not running()


def test_the_next_is_made_while_the_caller_works_and_none_after_it() -> None:
    made = [threading.Event() for _ in range(5)]

    def make(item: int) -> int:
        made[item].set()
        return item

    for item in one_ahead(make, range(5)):
        assert made[min(item + 1, 4)].wait(PATIENCE_S)
        assert not any(event.is_set() for event in made[item + 2 :])


def test_an_error_is_raised_at_its_turn() -> None:
    def refuse_one(item: int) -> int:
        if item == 1:
            raise ValueError("one")
        return item

    results = one_ahead(refuse_one, range(4))
    assert next(results) == 0
    with pytest.raises(ValueError, match="one"):
        next(results)
    assert not running()


def test_a_caller_that_stops_leaves_no_thread() -> None:
    results = one_ahead(lambda item: item, range(4))
    next(results)
    assert running()
    results.close()  # type: ignore[attr-defined]
    assert not running()
