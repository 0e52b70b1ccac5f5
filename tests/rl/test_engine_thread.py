"""The engine's thread around plain parts: whose seconds count, and when."""

from __future__ import annotations

import time

import pytest

from rl.engine_thread import EngineThread
from rl.protocols import SampledGroup


class Once:
    """Has one step to do once it is busy, which takes three seconds of the test's clock."""

    def __init__(self, clock: list[float]) -> None:
        self.clock, self.busy = clock, False

    def advance(self) -> list[SampledGroup]:
        self.clock[0] += 3.0
        self.busy = False
        return [SampledGroup(0, ())]


def test_seconds_count_before_anyone_hears_of_what_they_were_spent_on(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    thread = EngineThread()

    def work() -> None:
        clock[0] += 2.0

    def fail() -> None:
        clock[0] += 4.0
        raise ValueError("of the caller's")

    for turn in range(1, 50):
        thread.call(work)
        assert thread.busy_seconds == 2.0 * turn
    with pytest.raises(ValueError, match="caller's"):
        thread.call(fail)
    assert thread.busy_seconds == 2.0 * 49 + 4.0
    engine = Once(clock)
    thread.drive(engine)

    def begin() -> None:
        work()
        engine.busy = True

    thread.post(begin)
    assert [group.ticket for group in thread.collect()] == [0]
    assert thread.busy_seconds == 2.0 * 50 + 4.0 + 3.0


class Queue:
    """Takes on requests, a tenth of a second each, and ends one a step; `taken` is how many came before each step."""

    def __init__(self, clock: list[float], thread: EngineThread) -> None:
        self.clock, self.thread, self.waiting, self.taken = clock, thread, 0, [0]

    @property
    def busy(self) -> bool:
        return self.waiting > 0

    def take_on(self) -> None:
        self.clock[0] += 0.1
        self.waiting += 1
        self.taken[-1] += 1

    def advance(self) -> list[SampledGroup]:
        if len(self.taken) == 1:
            self.thread.post_all([self.take_on] * 3)
        self.taken.append(0)
        self.waiting -= 1
        return [SampledGroup(0, ())]


def test_what_is_posted_to_an_idle_engine_shares_its_first_step_and_holds_up_none_at_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    thread = EngineThread()
    engine = Queue(clock, thread)
    thread.drive(engine)
    thread.post_all([engine.take_on] * 5)
    ended = 0
    while ended < 5 + 3:
        ended += len(thread.collect())
    assert engine.taken[:5] == [5, 1, 1, 1, 0]
