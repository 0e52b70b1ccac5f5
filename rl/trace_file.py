"""trace.json: the recordings of all processes as one Chrome trace, for https://ui.perfetto.dev or chrome://tracing.

lane (driver, rollout-0, learner-1, …) = a process of the trace; its threads, and the streams of its GPU, = threads
"X" events: ts and dur in microseconds since the first event of all; otherData.began is that moment, in ns since 1970
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl.runlog import write_atomically
from rl.trace import Event

FILE = "trace.json"


@dataclass(frozen=True)
class Lane:
    """One process: its name, the machine it runs on, what it recorded on the driver's clock, and how much did not fit."""

    name: str
    host: str
    process: int
    events: tuple[Event, ...]
    lost: int = 0


def write_trace(path: Path, lanes: Sequence[Lane]) -> None:
    """Replace `path` by the trace of `lanes`, whole or not at all."""
    began = min((event.began for lane in lanes for event in lane.events), default=0)
    events = [event for number, lane in enumerate(lanes) for event in _events(number, lane, began)]
    lost = {lane.name: lane.lost for lane in lanes if lane.lost}
    about = {"began": began, "lost_events": lost}
    content = {"traceEvents": events, "displayTimeUnit": "ms", "otherData": about}
    write_atomically(path, json.dumps(content, separators=(",", ":"), allow_nan=False))


def _events(number: int, lane: Lane, began: int) -> Iterator[dict[str, Any]]:
    yield _named("process_name", number, 0, name=lane.name)
    yield _named("process_labels", number, 0, labels=f"{lane.host}, process {lane.process}")
    yield _named("process_sort_index", number, 0, sort_index=number)
    threads = dict.fromkeys((event.thread, event.thread_name) for event in lane.events)
    for order, (thread, name) in enumerate(threads):
        yield _named("thread_name", number, thread, name=name)
        yield _named("thread_sort_index", number, thread, sort_index=order)
    for event in lane.events:
        times = {"ts": (event.began - began) / 1000, "dur": event.lasted / 1000}
        written = {"ph": "X", "name": event.name, "cat": event.kind, "pid": number, "tid": event.thread, **times}
        yield {**written, "args": dict(event.args)} if event.args else written


def _named(kind: str, number: int, thread: int, **args: str | int) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": number, "tid": thread, "args": args}


def read_trace(path: Path, without: frozenset[str] = frozenset()) -> list[Lane]:
    """The lanes of a trace that `write_trace` wrote, but for events of the kinds in `without`."""
    content = json.loads(path.read_text(encoding="utf-8"))
    began, lost = content["otherData"]["began"], content["otherData"]["lost_events"]
    told: dict[tuple[int, int, str], Mapping[str, Any]] = {
        (event["pid"], event["tid"], event["name"]): event["args"] for event in content["traceEvents"] if event["ph"] == "M"
    }
    by_lane: dict[int, list[Event]] = {number: [] for number, _, kind in told if kind == "process_name"}
    for event in content["traceEvents"]:
        if event["ph"] != "X" or event["cat"] in without:
            continue
        number, thread = event["pid"], event["tid"]
        times = (began + round(event["ts"] * 1000), round(event["dur"] * 1000))
        thread_name = told[number, thread, "thread_name"]["name"]
        by_lane[number].append(Event(event["name"], *times, thread, thread_name, event["cat"], event.get("args", {})))
    lanes = []
    for number, events in by_lane.items():
        name = told[number, 0, "process_name"]["name"]
        host, _, process = told[number, 0, "process_labels"]["labels"].rpartition(", process ")
        lanes.append(Lane(name, host, int(process), tuple(events), lost.get(name, 0)))
    return lanes
