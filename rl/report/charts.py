"""Line and stacked charts as inline SVG: axes, ticks, a smoothed line over the faint raw one, the last value written.

All charts of a stage share the step axis, so that they can be read one under the other. Nothing here knows a metric.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from rl.report.markup import SUPERSCRIPT, Markup, join, number, tag

Point = tuple[int, float]

WIDTH, HEIGHT = 340, 178
LEFT, RIGHT, TOP, BOTTOM = 48, 60, 10, 28
HOVER_STRIPS = 80
MAX_POINTS = 400
LABEL_GAP = 12.0
# Up to this many points, each is marked.
DOTTED_POINTS = 24


@dataclass(frozen=True, slots=True)
class Line:
    """One series; `color` is a class of report.css. Values that are not finite leave a gap and are marked."""

    label: str
    color: str
    points: Sequence[Point]


@dataclass(frozen=True, slots=True)
class Bound:
    """A horizontal limit drawn across the chart."""

    label: str
    value: float


@dataclass(frozen=True, slots=True)
class Scale:
    """Data to pixels; `log` scales by decades and puts values at or under zero on the lowest one."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = (math.log10(self.low), math.log10(self.high)) if self.log else (self.low, self.high)
        at = math.log10(max(value, self.low)) if self.log else value
        return self.start + (at - low) / (high - low) * (self.end - self.start)


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round values (1, 2, 2.5, 5 × a power of ten) covering [low, high] in about `count` steps.

    >>> ticks(0.12, 0.93)
    [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def smooth(points: Sequence[Point], window: int) -> list[Point]:
    """Exponential moving average over about `window` steps, without the bias of its start.

    >>> smooth([(0, 1.0), (1, 1.0)], 5)
    [(0, 1.0), (1, 1.0)]
    """
    keep = 1 - 2 / (window + 1)
    total, weight, smoothed = 0.0, 0.0, []
    for step, value in points:
        total, weight = keep * total + value, keep * weight + 1
        smoothed.append((step, total / weight))
    return smoothed


def smoothing_window(count: int) -> int:
    """A twelfth of the run, at least one step: 1 means the raw line is shown alone."""
    return max(1, round(count / 12)) if count >= 12 else 1


def thin(points: Sequence[Point], limit: int = MAX_POINTS) -> list[Point]:
    """At most about `limit` points that keep every bin's smallest and largest value, so that no spike disappears."""
    if len(points) <= limit:
        return list(points)
    size = math.ceil(len(points) / (limit // 2))
    bins = [points[start : start + size] for start in range(0, len(points), size)]
    ends = [sorted({min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])}) for part in bins]
    return [points[0], *(point for pair in ends for point in pair if point not in (points[0], points[-1])), points[-1]]


def _runs(points: Sequence[Point]) -> list[list[Point]]:
    """Stretches of finite values."""
    runs: list[list[Point]] = [[]]
    for point in points:
        if math.isfinite(point[1]):
            runs[-1].append(point)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _path(points: Sequence[Point], x: Scale, y: Scale, class_: str) -> Markup:
    if len(points) == 1:
        return tag("circle", cx=x(points[0][0]), cy=y(points[0][1]), r=1.6, class_=class_.replace("raw", "mark"))
    return tag("path", d="M" + "L".join(f"{x(step):.1f},{y(value):.1f}" for step, value in points), class_=class_)


def _y_scale(lines: Sequence[Line], bound: Bound | None, log: bool, zero: bool) -> tuple[Scale, list[float]]:
    values = [value for line in lines for _, value in line.points if math.isfinite(value)]
    values += [bound.value] if bound else []
    if log:
        positive = [value for value in values if value > 0] or [1e-8, 1e-7]
        bottom, top = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)) + 1e-9)
        top = max(top, bottom + 1)
        decades = range(bottom, top + 1, math.ceil((top - bottom) / 5))
        return Scale(10.0**bottom, 10.0**top, HEIGHT - BOTTOM, TOP, log=True), [10.0**decade for decade in decades]
    low, high = min(values, default=0.0), max(values, default=1.0)
    low = min(low, 0.0) if zero else low
    if high - low <= abs(high) * 1e-9:
        low, high = (0.0, 1.0) if 0 <= high <= 1 else (low - abs(low) * 0.5, high + abs(high) * 0.5)
    marks = ticks(low, high)
    return Scale(marks[0], marks[-1], HEIGHT - BOTTOM, TOP), marks


def _step_ticks(first: int, last: int, count: int) -> list[int]:
    if first == last:
        return [first]
    return [int(mark) for mark in ticks(first, last, count) if mark == int(mark) and first <= mark <= last]


def _tick_label(value: float, log: bool) -> str:
    return f"10{str(round(math.log10(value))).translate(SUPERSCRIPT)}" if log else f"{value:,.10g}".replace("-", "−")


def _labels(values: Sequence[float], log: bool) -> list[str]:
    """Tick labels; tiny ticks are written with a common power of ten each."""
    if not log and 0 < max(abs(value) for value in values) < 0.001:
        return [number(value) for value in values]
    return [_tick_label(value, log) for value in values]


def _axes(x: Scale, y: Scale, y_marks: Sequence[float], x_marks: Sequence[int], width: int) -> Markup:
    right = width - RIGHT
    grid = [
        join(
            (
                tag("line", x1=LEFT, x2=right, y1=y(mark), y2=y(mark), class_="grid"),
                tag("text", label, x=LEFT - 6, y=y(mark) + 3.5, class_="tick end"),
            )
        )
        for mark, label in zip(y_marks, _labels(y_marks, y.log), strict=True)
    ]
    base = y.start
    steps = [
        join(
            (
                tag("line", x1=x(mark), x2=x(mark), y1=base, y2=base + 3, class_="axis"),
                tag("text", f"{mark:,}", x=x(mark), y=base + 14, class_="tick middle"),
            )
        )
        for mark in x_marks
    ]
    axis = tag("line", x1=LEFT, x2=right, y1=base, y2=base, class_="axis")
    return join((*grid, *steps, axis, tag("text", "step", x=width - 8, y=base + 14, class_="tick end")))


def _spread(positions: Sequence[float]) -> list[float]:
    """Label positions moved down just enough not to overlap."""
    placed: dict[int, float] = {}
    below = -math.inf
    for index in sorted(range(len(positions)), key=lambda i: positions[i]):
        below = max(positions[index], below + LABEL_GAP)
        placed[index] = below
    return [placed[index] for index in range(len(positions))]


def _draw(line: Line, x: Scale, y: Scale, window: int) -> Markup:
    runs = _runs(line.points)
    gaps = [step for step, value in line.points if not math.isfinite(value)]
    marks = [
        tag(
            "path",
            tag("title", f"step {step}: not finite"),
            d=f"M{x(step) - 3:.1f},{y.start - 7}l6,6m0,-6l-6,6",
            class_="bad",
        )
        for step in gaps
    ]
    if window == 1:
        few = line.points if len(line.points) <= DOTTED_POINTS else ()
        dots = [
            tag("circle", cx=x(step), cy=y(value), r=1.8, class_=f"mark {line.color}")
            for step, value in few
            if math.isfinite(value)
        ]
        return join((*(_path(thin(run), x, y, f"line {line.color}") for run in runs), *dots, *marks))
    raw = [_path(thin(run), x, y, f"raw {line.color}") for run in runs]
    return join((*raw, *(_path(thin(smooth(run, window)), x, y, f"line {line.color}") for run in runs), *marks))


def _last_values(lines: Sequence[Line], x: Scale, y: Scale, window: int) -> Markup:
    """A dot on the last (smoothed) value of every line and the value beside it."""
    ends = [(line, smooth(runs[-1], window)[-1]) for line in lines if (runs := _runs(line.points))]
    heights = _spread([y(value) + 3.5 for _, (_, value) in ends])
    return join(
        tag(
            "g",
            tag("circle", cx=x(step), cy=y(value), r=2.6),
            tag("text", number(value), x=x.end + 6, y=height, class_="last"),
            class_=line.color,
        )
        for (line, (step, value)), height in zip(ends, heights, strict=True)
    )


def _hover(lines: Sequence[Line], x: Scale, y: Scale) -> Markup:
    """Invisible strips that tell the values at a step when pointed at."""
    steps = sorted({step for line in lines for step, _ in line.points})
    shown = steps[:: math.ceil(len(steps) / HOVER_STRIPS)] if steps else []
    values = [(line.label, dict(line.points)) for line in lines]
    width = (x.end - x.start) / max(len(shown), 1)
    strips = []
    for step in shown:
        told = ", ".join(f"{label} {number(at[step])}" for label, at in values if step in at)
        left = min(max(x(step) - width / 2, x.start), x.end - width)
        title = tag("title", f"step {step}: {told}")
        strips.append(tag("rect", title, x=left, y=float(TOP), width=width, height=float(y.start - TOP)))
    return tag("g", *strips, class_="hover")


def line_chart(
    title: str,
    lines: Sequence[Line],
    steps: tuple[int, int],
    *,
    log: bool = False,
    zero: bool = False,
    bound: Bound | None = None,
    smoothed: bool = True,
) -> Markup:
    """An SVG of one or more series over the stage's steps (first, last). `zero` keeps 0 on the value axis."""
    first, last = steps if steps[1] > steps[0] else (steps[0], steps[0] + 1)
    x = Scale(first, last, LEFT, WIDTH - RIGHT)
    y, marks = _y_scale(lines, bound, log, zero)
    window = smoothing_window(max(len(line.points) for line in lines)) if smoothed else 1
    limit = None
    if bound:
        at = y(bound.value)
        text = tag("text", bound.label, x=LEFT + 4, y=at + 12 if at < TOP + 12 else at - 4, class_="bound-label")
        limit = join((tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=at, y2=at, class_="bound"), text))
    told = "; ".join(f"{line.label}: {_describe(line.points)}" for line in lines)
    return tag(
        "svg",
        tag("title", title),
        tag("desc", f"{title} over steps {steps[0]} to {steps[1]}. {told}"),
        _axes(x, y, marks, _step_ticks(first, last, 5), WIDTH),
        limit,
        *(_draw(line, x, y, window) for line in lines),
        _last_values(lines, x, y, window),
        _hover(lines, x, y),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
    )


def _describe(points: Sequence[Point]) -> str:
    values = [value for _, value in points if math.isfinite(value)]
    if not values:
        return "no finite value"
    return f"first {number(values[0])}, last {number(values[-1])}, least {number(min(values))}, most {number(max(values))}"


def _bins(rows: Sequence[tuple[int, Mapping[str, float]]], limit: int) -> list[tuple[int, int, dict[str, float]]]:
    """Rows averaged into at most `limit` bins of neighbouring steps: (first step, last step, mean by name)."""
    size = math.ceil(len(rows) / limit)
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    return [
        (part[0][0], part[-1][0], {name: fmean(values.get(name, 0.0) for _, values in part) for name in part[0][1]})
        for part in parts
    ]


def stacked_bars(
    title: str, rows: Sequence[tuple[int, Mapping[str, float]]], colors: Mapping[str, str], steps: tuple[int, int]
) -> Markup:
    """Stacked bars over steps, one colour a name in the order of `colors`; `rows` hold seconds by name."""
    width = 2 * WIDTH
    rows = [(step, {name: values.get(name, 0.0) for name in colors}) for step, values in rows]
    bins = _bins(rows, 100)
    marks = ticks(0.0, max(sum(values.values()) for *_, values in bins) or 1.0)
    x = Scale(steps[0] - 0.5, steps[1] + 0.5, LEFT, width - RIGHT)
    y = Scale(0.0, marks[-1], HEIGHT - BOTTOM, TOP)
    bars = []
    for first, last, values in bins:
        left, right = x(first - 0.5), x(last + 0.5)
        gap = min(1.0, (right - left) * 0.15)
        told = ", ".join(f"{name} {value:.3g} s" for name, value in values.items())
        base, pieces = 0.0, []
        for name, value in values.items():
            top = base + value
            size = y(base) - y(top)
            if size > 0:
                pieces.append(
                    tag("rect", x=left, y=y(top), width=right - left - gap, height=size, class_=f"fill {colors[name]}")
                )
            base = top
        when = f"step {first}" if first == last else f"steps {first} to {last}, on average"
        bars.append(tag("g", tag("title", f"{when}: {told}"), *pieces, class_="bar"))
    return tag(
        "svg",
        tag("title", title),
        tag("desc", f"{title}, steps {steps[0]} to {steps[1]}; the table beside it holds the figures."),
        _axes(x, y, marks, _step_ticks(*steps, 8), width),
        *bars,
        viewBox=f"0 0 {width} {HEIGHT}",
        role="img",
    )


def histogram(title: str, before: Sequence[float], after: Sequence[float], bins: int = 10) -> Markup:
    """Two distributions of values in [0, 1] side by side, bin by bin: hollow before, full after."""
    counts = [[0] * bins for _ in range(2)]
    for group, values in zip(counts, (before, after), strict=True):
        for value in values:
            group[min(int(value * bins), bins - 1)] += 1
    marks = ticks(0.0, max(max(group) for group in counts), 3)
    x, y = Scale(0.0, 1.0, 34, WIDTH - 10), Scale(0.0, marks[-1], 104, 8)
    half = (x(1 / bins) - x(0) - 4) / 2
    bars = [
        tag(
            "rect",
            tag("title", f"IoU {index / bins:.1f} to {(index + 1) / bins:.1f}: {count:,} {name}"),
            x=x(index / bins) + 2 + place * half,
            y=y(count),
            width=half - 0.8,
            height=y.start - y(count),
            class_=f"count {name}",
        )
        for place, (name, group) in enumerate(zip(("before", "after"), counts, strict=True))
        for index, count in enumerate(group)
        if count
    ]
    grid = [tag("line", x1=34, x2=WIDTH - 10, y1=y(mark), y2=y(mark), class_="grid") for mark in marks]
    labels = [tag("text", f"{mark:,.10g}", x=28, y=y(mark) + 3.5, class_="tick end") for mark in marks]
    scale = [tag("text", f"{mark:.2g}", x=x(mark), y=118, class_="tick middle") for mark in (0.0, 0.25, 0.5, 0.75, 1.0)]
    told = "; ".join(
        f"{name}: {', '.join(map(str, group))}" for name, group in zip(("before", "after"), counts, strict=True)
    )
    desc = tag("desc", f"Samples in {bins} equal bins from 0 to 1. {told}")
    return tag("svg", tag("title", title), desc, *grid, *labels, *bars, *scale, viewBox=f"0 0 {WIDTH} 124", role="img")


def dumbbell(title: str, start: float, final: float, low: float = 0.0, high: float = 1.0) -> Markup:
    """Start and final on one axis from `low` to `high`: an open dot, a bar, a full dot."""
    x = Scale(low, high, 6, 194)
    return tag(
        "svg",
        tag("title", title),
        tag("line", x1=6, x2=194, y1=10, y2=10, class_="grid"),
        *(tag("line", x1=x(mark), x2=x(mark), y1=7, y2=13, class_="grid") for mark in (low, (low + high) / 2, high)),
        tag("line", x1=x(start), x2=x(final), y1=10, y2=10, class_="rod"),
        tag("circle", cx=x(start), cy=10, r=4, class_="dot before"),
        tag("circle", cx=x(final), cy=10, r=4.5, class_="dot after"),
        viewBox="0 0 200 20",
        role="img",
        class_="dumbbell",
    )
