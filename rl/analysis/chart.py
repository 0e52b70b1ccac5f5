"""split.svg: the attention split as stacked bars, the mean over layers on top and every layer under it; stands alone."""

from __future__ import annotations

from collections.abc import Mapping

from rl.analysis.split import Split
from rl.analysis.token_classes import LABELS
from rl.report.charts import Scale
from rl.report.markup import Markup, join, tag

WIDTH, LEFT, RIGHT = 760, 96, 24
THICK, THIN, GAP = 30.0, 9.0, 3.0
# Okabe and Ito's colours, told apart by readers who do not see red and green alike; grey for what is no class.
COLORS = ("#0072b2", "#56b4e9", "#e69f00", "#cc79a7", "#c8c8c8")
WRITTEN = ("#ffffff", "#1d2126", "#1d2126", "#1d2126", "#1d2126")
TITLES = {"out": "without the category's name", "in": "with the category's name"}


def split_chart(splits: Mapping[str, Split], title: str) -> str:
    """The SVG file's text. `splits` by prompt: out, in."""
    x = Scale(0.0, 1.0, LEFT, WIDTH - RIGHT)
    body: list[Markup] = [_text(title, LEFT, 24, size=15, weight="bold"), _legend(44)]
    top = 76.0
    for prompt, split in splits.items():
        body.append(_text(f"Prompt {TITLES[prompt]}", LEFT, top))
        top += 10
        shares = split.shares_MC.mean(0).tolist()
        body.append(_bar(shares, x, top, THICK, f"all {len(split.shares_MC)} layers", written=True))
        top += THICK + 2 * GAP
        for layer, row in enumerate(split.shares_MC.tolist()):
            body.append(_bar(row, x, top, THIN, f"layer {layer}"))
            top += THIN + GAP
        body.append(_axis(x, top))
        top += 52
    style = "font: 12px system-ui, sans-serif; background: #ffffff"
    return tag(
        "svg",
        tag("title", title),
        tag("rect", x=0, y=0, width=WIDTH, height=top - 20, fill="#ffffff"),
        *body,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH} {top - 20:.0f}",
        role="img",
        style=style,
    )


def _text(
    text: str, x: float, y: float, size: int = 12, anchor: str = "start", weight: str = "normal", fill: str = "#1d2126"
) -> Markup:
    return tag("text", text, x=x, y=y, font_size=size, text_anchor=anchor, font_weight=weight, fill=fill)


def _legend(y: float) -> Markup:
    parts, x = [], float(LEFT)
    for label, color in zip(LABELS, COLORS, strict=True):
        parts.append(tag("rect", x=x, y=y - 9, width=10, height=10, fill=color))
        parts.append(_text(label, x + 15, y))
        x += 34 + 6.6 * len(label)
    return join(parts)


def _bar(shares: list[float], x: Scale, top: float, thickness: float, label: str, written: bool = False) -> Markup:
    parts = [_text(label, LEFT - 8, top + thickness / 2 + 3.5, size=12 if written else 9, anchor="end")]
    start = 0.0
    for share, name, color, ink in zip(shares, LABELS, COLORS, WRITTEN, strict=True):
        told = tag("title", f"{label}: {name} {share:.4f}")
        width = x(start + share) - x(start)
        parts.append(tag("rect", told, x=x(start), y=top, width=width, height=thickness, fill=color))
        if written and width > 34:
            parts.append(_text(f"{share:.1%}", x(start + share / 2), top + thickness / 2 + 4, anchor="middle", fill=ink))
        start += share
    return join(parts)


def _axis(x: Scale, y: float) -> Markup:
    marks = [0.0, 0.25, 0.5, 0.75, 1.0]
    return join(_text(f"{mark:.0%}", x(mark), y + 12, size=10, anchor="middle", fill="#5f6873") for mark in marks)
