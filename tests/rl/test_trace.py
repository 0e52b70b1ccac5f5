"""Spans and traces: what is recorded and when, on whose clock, and the file that comes of it."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from rl import trace
from rl.actors.tracing import Tracing, clocks_ahead
from rl.clock import PhaseClock
from rl.profile_config import ProfileConfig
from rl.trace import CALL, RECORDER, TORCH, WAIT, Clock, Event, Recording, span, spanned, traced
from rl.trace_file import Lane, read_trace, write_trace
from rl.trace_steps import StepTrace


@pytest.fixture(autouse=True)
def _nobody_records_afterwards() -> Iterator[None]:
    yield
    RECORDER.stop()


def events_of(work: Callable[[], object]) -> list[Event]:
    trace.start(False)
    work()
    return list(trace.stop().events)


def test_nothing_is_recorded_before_and_after_a_recording() -> None:
    def work() -> None:
        with span("work"):
            pass

    work()
    assert [event.name for event in events_of(work)] == ["work"]
    work()
    assert events_of(lambda: None) == []
    straddling = span("begun before")
    with straddling:
        trace.start(False)
    assert trace.stop().events == ()


def test_spans_lie_inside_one_another_on_the_wall_clock_and_keep_their_arguments() -> None:
    before = time.time_ns()

    def work() -> None:
        with span("outer", rows=4):
            time.sleep(0.002)
            with span("inner", WAIT):
                time.sleep(0.002)

    inner, outer = events_of(work)
    after = time.time_ns()
    assert (outer.name, outer.kind, outer.args) == ("outer", CALL, {"rows": 4})
    assert (inner.name, inner.kind, inner.thread) == ("inner", WAIT, threading.get_native_id())
    assert before <= outer.began < inner.began
    assert inner.began + inner.lasted <= outer.began + outer.lasted <= after
    assert inner.lasted >= 2_000_000


def test_threads_are_told_apart_by_the_systems_ids() -> None:
    ids: list[int] = []

    def other() -> None:
        ids.append(threading.get_native_id())
        with span("other"):
            pass

    def work() -> None:
        thread = threading.Thread(target=other, name="engine")
        thread.start()
        thread.join()

    (event,) = events_of(work)
    assert (event.thread, event.thread_name) == (ids[0], "engine")
    assert event.thread != threading.get_native_id()


def test_functions_and_the_named_methods_of_an_actor_are_spans_and_stay_what_they_are() -> None:
    @traced("answer")
    class Actor:
        def answer(self, of: int) -> int:
            """Docs."""
            return doubled(of)

        def quiet(self) -> None: ...

    @spanned("double")
    def doubled(number: int) -> int:
        return 2 * number

    def work() -> None:
        actor = Actor()
        actor.quiet()
        assert actor.answer(of=3) == 6

    assert [event.name for event in events_of(work)] == ["double", "answer"]
    assert Actor.answer.__doc__ == "Docs."


def test_a_span_is_recorded_when_what_is_inside_fails() -> None:
    @spanned("fails")
    def fails() -> None:
        raise OSError("no")

    def work() -> None:
        with pytest.raises(OSError, match="no"):
            fails()

    assert [event.name for event in events_of(work)] == ["fails"]


def test_phases_of_a_clock_are_spans() -> None:
    clock = PhaseClock()

    def work() -> None:
        with clock.phase("update"):
            time.sleep(0.001)

    (event,) = events_of(work)
    assert event.name == "update"
    assert event.lasted == pytest.approx(clock.lap()["time/update"] * 1e9, abs=1e6)


def test_what_does_not_fit_is_counted_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "MAX_EVENTS", 2)
    trace.start(False)
    for number in range(5):
        with span(str(number)):
            pass
    recording = trace.stop()
    assert [event.name for event in recording.events] == ["0", "1"]
    assert recording.lost == 3


def test_torchs_events_are_on_the_same_axis_inside_the_span_that_caused_them() -> None:
    """An engine's own thread works, while an actor's other threads begin and end the recording."""
    matrix = torch.eye(64)
    begin, done, leave = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begin.wait()
        with span("multiply"):
            time.sleep(0.01)
            matrix @ matrix
            time.sleep(0.01)
        done.set()
        leave.wait()

    engine = threading.Thread(target=work, name="engine")
    engine.start()
    with ThreadPoolExecutor(1) as one:
        one.submit(trace.start, True).result()
    begin.set()
    done.wait()
    with ThreadPoolExecutor(1) as another:
        events = another.submit(trace.stop).result().events
    leave.set()
    (multiply,) = [event for event in events if event.name == "multiply"]
    (product,) = [event for event in events if event.name == "aten::mm"]
    assert product.kind == TORCH
    assert (product.thread, product.thread_name) == (multiply.thread, "engine")
    assert multiply.began < product.began
    assert product.began + product.lasted < multiply.began + multiply.lasted


def lanes() -> list[Lane]:
    began = 1_700_000_000_000_000_000
    driver = (Event("update", began, 3_000_000, 7, "MainThread"),)
    learner = (
        Event("update", began + 1_000_000, 1_500_500, 8, "MainThread", CALL, {"rows": 2}),
        Event("aten::mm", began + 1_200_000, 2_000, -1, "GPU 0, stream 0", TORCH),
    )
    return [Lane("driver", "here", 11, driver), Lane("learner-0", "there", 12, learner, lost=3)]


def test_the_file_is_a_chrome_trace_and_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    write_trace(path, lanes())
    content = json.loads(path.read_text())
    shown = [event for event in content["traceEvents"] if event["ph"] == "X"]
    assert [(event["name"], event["pid"], event["tid"], event["ts"], event["dur"]) for event in shown] == [
        ("update", 0, 7, 0.0, 3000.0),
        ("update", 1, 8, 1000.0, 1500.5),
        ("aten::mm", 1, -1, 1200.0, 2.0),
    ]
    named = {(event["name"], event["pid"]): event["args"] for event in content["traceEvents"] if event["ph"] == "M"}
    assert named["process_name", 1] == {"name": "learner-0"}
    assert "there" in named["process_labels", 1]["labels"]
    assert read_trace(path) == lanes()
    assert [len(lane.events) for lane in read_trace(path, without=frozenset({TORCH}))] == [1, 1]


class Everybody:
    """Records in this process only, as lane `driver`."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def start(self, torch: bool) -> None:
        self.calls.append("start")
        trace.start(torch)

    def stop(self) -> list[Lane]:
        self.calls.append("stop")
        recording = trace.stop()
        return [Lane("driver", recording.host, recording.process, recording.events)]


def test_wanted_steps_are_recorded_and_neighbours_in_one_go(tmp_path: Path) -> None:
    everybody, steps = Everybody(), StepTrace(ProfileConfig(steps="2-3,5"), tmp_path)
    after: list[int] = []
    for number in range(1, 7):
        with steps.step("grpo", number, everybody):
            pass
        after.append(len(everybody.calls))
        with span(f"after {number}"):
            pass
    steps.finish()
    assert after == [0, 1, 2, 2, 4, 4]
    (lane,) = read_trace(tmp_path / "trace.json")
    assert [(event.name, event.args.get("number")) for event in lane.events] == [
        ("step", 2),
        ("after 2", None),
        ("step", 3),
        ("step", 5),
    ]
    assert lane.process == os.getpid()


def test_a_stage_that_ends_early_leaves_what_was_recorded(tmp_path: Path) -> None:
    steps = StepTrace(ProfileConfig(steps="1-9"), tmp_path)
    with steps.step("sft", 1, Everybody()):
        pass
    assert not (tmp_path / "trace.json").exists()
    steps.finish()
    (lane,) = read_trace(tmp_path / "trace.json")
    assert [event.args["stage"] for event in lane.events] == ["sft"]
    assert not RECORDER.on


class TwoRanks:
    """A group whose rank 0 is on this machine, and whose rank 1 is five seconds ahead on another; it answers slowly once."""

    def __init__(self) -> None:
        self.asked = 0

    def __len__(self) -> int:
        return 2

    def run_all(self, function: Any) -> list[Clock]:
        self.asked += 1
        here = function()
        if self.asked == 1:
            time.sleep(0.05)
        return [here, Clock(here.now + 5_000_000_000, "another machine")]


def test_ranks_on_this_machine_are_on_one_axis_whatever_their_readings_of_the_wall_clock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two ranks, each a thread that records once and reads a wall clock that is off by a second more than the one before."""

    class Group:
        role = "learner"
        ranks: ClassVar[list[Recording]] = []

        def __len__(self) -> int:
            return 2

        def run_all(self, function: Callable[[], Any]) -> list[Any]:
            return [self.ranks.pop(0) for _ in range(2)] if function is trace.stop else [function()] * 2

    group = Group()
    wall, began = time.time_ns, {}
    for rank in range(2):
        monkeypatch.setattr(time, "time_ns", lambda rank=rank: wall() + (rank + 1) * 1_000_000_000)
        trace.start(False)
        with span("work"):
            began[rank] = time.perf_counter_ns()
        group.ranks.append(trace.stop())
    monkeypatch.setattr(time, "time_ns", wall)
    trace.start(False)
    with span("driver"):
        on_driver = time.perf_counter_ns()
    driver, *ranks = Tracing(lambda: [group]).stop()  # type: ignore[list-item]
    assert [lane.name for lane in (driver, *ranks)] == ["driver", "learner-0", "learner-1"]
    for rank, lane in enumerate(ranks):
        apart = driver.events[0].began - lane.events[0].began
        assert apart == pytest.approx(on_driver - began[rank], abs=2e8)


def test_another_machines_clock_is_compared_by_its_fastest_answer() -> None:
    ahead = clocks_ahead(TwoRanks())  # type: ignore[arg-type]
    assert ahead[0] is None
    assert ahead[1] == pytest.approx(5e9, abs=1e6)
