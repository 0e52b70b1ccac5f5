"""WorkerPool: results in order, few items in flight, and a dead process is an error that says so."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from data.parallel import WorkerPool


def slow_for_small(item: int) -> int:
    time.sleep(0.02 if item < 2 else 0.0)
    return item * 10


def die_at_five(item: int) -> int:
    if item == 5:
        os._exit(9)
    return item


def refuse_three(item: int) -> int:
    if item == 3:
        raise ValueError("three")
    return item


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_items(workers: int) -> None:
    with WorkerPool(workers) as pool:
        assert list(pool.map(slow_for_small, range(20))) == [item * 10 for item in range(20)]
        assert list(pool.map(slow_for_small, [])) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_few_items_are_taken_ahead_of_the_results(workers: int) -> None:
    taken = []

    def items() -> Iterator[int]:
        for item in range(100):
            taken.append(item)
            yield item

    with WorkerPool(workers) as pool:
        results = pool.map(slow_for_small, items())
        for received in range(1, 101):
            next(results)
            assert len(taken) <= received + 3 * workers


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_the_function_comes_out_as_it_is(workers: int) -> None:
    with pytest.raises(ValueError, match="three"), WorkerPool(workers) as pool:
        list(pool.map(refuse_three, range(10)))


def test_a_process_that_dies_is_an_error_and_no_deadlock() -> None:
    with pytest.raises(ChildProcessError, match="worker process was killed"), WorkerPool(2) as pool:
        list(pool.map(die_at_five, range(100)))


def test_no_workers_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        WorkerPool(0)
