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
