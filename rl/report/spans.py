"""A recorded step as rows of bars in seconds since it began, and how much of it who computed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from rl.trace import TORCH, WAIT, Event
from rl.trace_file import Lane
from rl.trace_steps import STEP

Stretch = tuple[float, float]

DEPTHS = 2  # a call, and what it consists of

# What counts as sampling and learning: weights on their way do not, nor does whoever waits for them. Each counts whole,
# with what a role reads, lays out or waits for inside it.
COMPUTING: Mapping[str, frozenset[str]] = {
    "rollout": frozenset({"generate", "prefill", "decode", "take on"}),
    "learner": frozenset({"update", "logprobs", "reference_logprobs"}),
    "reference": frozenset({"logprobs"}),
    "reward": frozenset({"score"}),
}


@dataclass(frozen=True)
class Bar:
    """A span inside the step; `depth` 0 is a call, 1 a part of it."""

    name: str
    start: float
    end: float
    depth: int
    kind: str
    args: Mapping[str, float | str]


@dataclass(frozen=True)
class Row:
    """The spans of one thread of a lane."""

    lane: str
    bars: tuple[Bar, ...]

    @property
    def depths(self) -> int:
        return 1 + max(bar.depth for bar in self.bars)


@dataclass(frozen=True)
class StepView:
    """One step. `busy`: by actor, the share of the step in which it worked; `computed`: by role, in which any of it did.

    `nobody`: when neither a sampler nor the learner computed; `overhead`: that as a share; and by phase of the driver.
    """

    stage: str
    number: int
    seconds: float
    rows: tuple[Row, ...]
    busy: Mapping[str, float]
    computed: Mapping[str, float]
    nobody: tuple[Stretch, ...]
    overhead: float
    overhead_by_phase: tuple[tuple[str, float], ...]


def last_step(lanes: Sequence[Lane], stage: str) -> StepView | None:
    """The last recorded step of `stage`; None where none was."""
    steps = [event for event in lanes[0].events if event.name == STEP and event.args["stage"] == stage] if lanes else []
    return step_view(lanes, max(steps, key=lambda event: event.began)) if steps else None


def step_view(lanes: Sequence[Lane], step: Event) -> StepView:
    """`step` is the driver's span around it; the driver's lane is the first."""
    seconds = step.lasted / 1e9
    rows = tuple(row for lane in lanes for row in _rows(lane, step))
    busy = {lane.name: _busy([row for row in rows if row.lane == lane.name]) / seconds for lane in lanes[1:]}
    working = {role: _computing(rows, role) for role in COMPUTING}
    computed = {role: length(found) / seconds for role, found in working.items() if found}
    nobody = gaps(covered(working["rollout"] + working["learner"]), seconds)
    phases = [bar for row in rows if row.lane == lanes[0].name for bar in row.bars if bar.depth == 0]
    by_phase: dict[str, float] = {}
    for bar in phases:
        by_phase[bar.name] = by_phase.get(bar.name, 0.0) + length(common(nobody, [(bar.start, bar.end)])) / seconds
    ordered = sorted(((name, share) for name, share in by_phase.items() if share >= 0.0005), key=lambda item: -item[1])
    number = int(step.args["number"])
    overhead = length(nobody) / seconds
    return StepView(str(step.args["stage"]), number, seconds, rows, busy, computed, tuple(nobody), overhead, tuple(ordered))


def _rows(lane: Lane, step: Event) -> Iterator[Row]:
    """A row a thread that did something in the step, the earliest first."""
    ended = step.began + step.lasted
    threads: dict[int, list[Event]] = {}
    for event in sorted(lane.events, key=lambda event: (event.began, -event.lasted)):
        inside = event.began < ended and event.began + event.lasted > step.began
        if inside and event.kind != TORCH and event.name != STEP:
            threads.setdefault(event.thread, []).append(event)
    for events in threads.values():
        bars = tuple(bar for bar in _bars(events, step) if bar.depth < DEPTHS)
        yield Row(lane.name, bars)


def _bars(events: Sequence[Event], step: Event) -> Iterator[Bar]:
    """Cut at the step's ends; an event lies inside those that have not ended when it begins."""
    open_until: list[int] = []
    for event in events:
        ends = event.began + event.lasted
        while open_until and open_until[-1] <= event.began:
            open_until.pop()
        start, end = max(event.began, step.began) - step.began, min(ends, step.began + step.lasted) - step.began
        yield Bar(event.name, start / 1e9, end / 1e9, len(open_until), event.kind, event.args)
        open_until.append(ends)


def _busy(rows: Sequence[Row]) -> float:
    """Seconds in which a lane did anything but wait."""
    bars = [bar for row in rows for bar in row.bars]
    waits = covered((bar.start, bar.end) for bar in bars if bar.kind == WAIT)
    works = covered((bar.start, bar.end) for bar in bars if bar.kind != WAIT)
    return length(works) - length(common(works, waits))


def _computing(rows: Iterable[Row], role: str) -> list[Stretch]:
    names = COMPUTING[role]
    own = [row for row in rows if row.lane.rpartition("-")[0] == role]
    return covered((bar.start, bar.end) for row in own for bar in row.bars if bar.name in names)


def covered(stretches: Iterable[Stretch]) -> list[Stretch]:
    """Their union, as stretches that do not touch.

    >>> covered([(0, 2), (1, 3), (5, 6)])
    [(0, 3), (5, 6)]
    """
    found: list[Stretch] = []
    for start, end in sorted(stretches):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def gaps(stretches: Sequence[Stretch], until: float) -> list[Stretch]:
    """What a union leaves of [0, until]."""
    edges = [0.0, *(edge for stretch in stretches for edge in stretch), until]
    return [(start, end) for start, end in list(pairwise(edges))[::2] if end > start]


def common(first: Sequence[Stretch], second: Sequence[Stretch]) -> list[Stretch]:
    """Where two unions overlap."""
    both = ((max(a[0], b[0]), min(a[1], b[1])) for a in first for b in second)
    return [(start, end) for start, end in both if end > start]


def length(stretches: Iterable[Stretch]) -> float:
    return sum(end - start for start, end in stretches)


def merged(bars: Sequence[Bar], narrow: float) -> Iterator[tuple[Bar, int]]:
    """Neighbours of one name that are narrower than `narrow`, and no further apart, as one bar; with how many they are."""
    held: tuple[Bar, int] | None = None
    for bar in bars:
        if held and _together(held[0], bar, narrow):
            held = (replace(held[0], end=bar.end, args={}), held[1] + 1)
            continue
        if held:
            yield held
        held = (bar, 1)
    if held:
        yield held


def _together(before: Bar, bar: Bar, narrow: float) -> bool:
    return before.name == bar.name and bar.end - bar.start < narrow and bar.start - before.end < narrow


def per_role(rows: Sequence[Row], most: int) -> list[Row]:
    """The rows of the first `most` lanes of every role."""
    return [row for row in rows if not row.lane.rpartition("-")[0] or int(row.lane.rpartition("-")[2]) < most]
