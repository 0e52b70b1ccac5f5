"""One recorded step as a picture: a row a process and thread, all on one time axis, with who computed for how much of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from rl.report.charts import Scale, ticks
from rl.report.markup import Markup, duration, join, tag
from rl.report.metrics import PHASE_COLORS
from rl.report.spans import Bar, Row, StepView, merged, per_role
from rl.trace import CALL, WAIT

WIDTH, LEFT, RIGHT, TOP = 1100, 112, 84, 6
HEIGHTS = (17, 11)  # of a bar, by depth
ROW_GAP, LANE_GAP, AXIS = 3, 9, 24
LETTER = 5.7  # pixels of one, in a bar's label
MERGED_PX = 2.5  # bars narrower than that are drawn together with their neighbours of the same name
LANES_OF_A_ROLE = 4
TITLES: Mapping[str, str] = {
    "rollout": "the samplers",
    "learner": "the learner",
    "reference": "the reference",
    "reward": "the rewards",
}

# By name of span; the driver's phases have the colours of PHASE_COLORS. "light" is the weaker of two of a colour.
COLORS: Mapping[str, str] = {
    "generate": "blue",
    "prefill": "blue",
    "decode": "blue light",
    "take on": "green light",
    "prepare prompt": "green",
    "process prompts": "green",
    "fetch samples": "gold",
    "lay out": "slate",
    "score": "amber",
    "logprobs": "teal",
    "reference_logprobs": "teal",
    "forward": "violet light",
    "backward": "violet",
    "optimizer": "pink",
    "load": "gold",
}


def timeline(view: StepView) -> Markup:
    """The picture, its legend, and what it says in words."""
    rows = per_role(view.rows, LANES_OF_A_ROLE)
    x = Scale(0.0, view.seconds, LEFT, WIDTH - RIGHT)
    pieces, bottom = _rows(view, rows, x)
    left_out = len({row.lane for row in view.rows}) - len({row.lane for row in rows})
    more = f" {left_out} more processes are in the file." if left_out else ""
    where = tag("span", "The whole recording: ", tag("a", "trace.json", href="trace.json"), f", for ui.perfetto.dev.{more}")
    svg = tag(
        "svg",
        tag("title", f"{view.stage} step {view.number}, every process on one time axis"),
        tag("desc", in_words(view)),
        _shade(view, x, bottom),
        _axis(x, bottom),
        *pieces,
        viewBox=f"0 0 {WIDTH} {bottom + AXIS}",
        role="img",
        class_="timeline",
    )
    return join((tag("p", in_words(view), " ", where, class_="lead"), tag("figure", svg, _legend(rows))))


def in_words(view: StepView) -> str:
    """Who computed for how much of the step, and where nobody did."""
    computed = ", ".join(f"{TITLES[role]} for {_share(share)}" for role, share in view.computed.items())
    phases = ", ".join(f"{_share(share)} {name.replace('_', ' ')}" for name, share in view.overhead_by_phase[:3])
    nobody = f"For {_share(view.overhead)} neither samplers nor learner did (shaded){f': {phases}' if phases else ''}."
    return f"Step {view.number} took {duration(view.seconds)}, in which computed: {computed}. {nobody}"


def _share(share: float) -> str:
    return f"{share:.1%}" if share < 0.1 else f"{share:.0%}"


def _rows(view: StepView, rows: Sequence[Row], x: Scale) -> tuple[list[Markup], float]:
    """Every lane from top to bottom, and where the last one ends."""
    pieces: list[Markup] = []
    top = float(TOP)
    for lane, threads in groupby(rows, key=lambda row: row.lane):
        began = top
        for row in threads:
            pieces.append(_bars(row, x, top))
            top += sum(HEIGHTS[: row.depths]) + ROW_GAP
        middle = began + HEIGHTS[0] - 5
        pieces.append(tag("text", lane, x=LEFT - 10, y=middle, class_="lane end"))
        if lane in view.busy:
            pieces.append(tag("text", f"busy {_share(view.busy[lane])}", x=WIDTH - RIGHT + 10, y=middle, class_="share"))
        top += LANE_GAP
        line = top - (LANE_GAP + ROW_GAP) / 2
        pieces.append(tag("line", x1=0, x2=WIDTH, y1=line, y2=line, class_="grid"))
    return pieces, top


def _bars(row: Row, x: Scale, top: float) -> Markup:
    seconds_a_pixel = x.high / (x.end - x.start)
    drawn = []
    for depth in range(row.depths):
        own = [bar for bar in row.bars if bar.depth == depth]
        for bar, count in merged(own, MERGED_PX * seconds_a_pixel):
            drawn.append(_bar(bar, count, x, top + sum(HEIGHTS[:depth]), depth, holds=depth == 0 and row.depths > 1))
    return join(drawn)


def _bar(bar: Bar, count: int, x: Scale, top: float, depth: int, holds: bool) -> Markup:
    left, right = x(bar.start), x(bar.end)
    width, height = max(right - left - 0.4, 0.5), HEIGHTS[depth] - 1
    color = COLORS.get(bar.name) or PHASE_COLORS.get(bar.name, "slate")
    look = "waiting" if bar.kind == WAIT else "outer" if holds else "inner"
    times = f" × {count}" if count > 1 else ""
    details = "".join(f", {name.replace('_', ' ')} {value}" for name, value in bar.args.items())
    told = tag("title", f"{bar.name}{times}: {duration(bar.end - bar.start)}, from {bar.start:.3f} s{details}")
    parts = [tag("rect", told, x=left, y=top, width=width, height=float(height), class_=f"{look} {color}")]
    if bar.kind == CALL and depth == 0 and count == 1 and width > LETTER * len(bar.name) + 8:
        parts.append(tag("text", bar.name.replace("_", " "), x=left + 4, y=top + height - 4, class_=f"name {color}"))
    return join(parts)


def _shade(view: StepView, x: Scale, bottom: float) -> Markup:
    return join(
        tag("rect", x=x(start), y=0, width=x(end) - x(start), height=float(bottom), class_="nobody")
        for start, end in view.nobody
    )


def _axis(x: Scale, bottom: float) -> Markup:
    marks = [mark for mark in ticks(0.0, x.high, 8) if mark <= x.high * 1.0001]
    lines = (tag("line", x1=x(mark), x2=x(mark), y1=0, y2=bottom + 3, class_="grid") for mark in marks)
    labels = (tag("text", f"{mark:g} s", x=x(mark), y=bottom + 16, class_="tick middle") for mark in marks)
    return join((*lines, *labels))


def _legend(rows: Sequence[Row]) -> Markup:
    """The names inside the bars of a lane; those of the driver are written in them."""
    names = dict.fromkeys((bar.name, bar.kind) for row in rows if row.lane != "driver" for bar in row.bars)
    keys = (
        tag("span", tag("i", class_="key hollow" if kind == WAIT else f"key {COLORS[name]}"), name.replace("_", " "))
        for name, kind in names
        if name in COLORS or kind == WAIT
    )
    return tag("figcaption", tag("span", *keys, class_="keys many"))
