"""HTML and SVG that cannot be broken by what is put in it: text and attributes are escaped, only Markup passes as it is."""

from __future__ import annotations

import math
from collections.abc import Iterable
from html import escape

VOID = frozenset({"meta", "br", "hr", "img"})
# SVG attributes that keep their capitals: written as they are.
CAMEL = frozenset({"viewBox", "preserveAspectRatio"})
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


class Markup(str):
    """A string that is markup already; only `tag`, `join` and this package's own constants make one."""

    __slots__ = ()


Child = str | Markup | None


def join(children: Iterable[Child]) -> Markup:
    """Children one after the other, plain text escaped, None left out."""
    texts = (child if isinstance(child, Markup) else escape(child) for child in children if child is not None)
    return Markup("".join(texts))


def tag(name: str, *children: Child, **attributes: str | float | None) -> Markup:
    """One element. `class_` is class, `stroke_width` is stroke-width; an attribute that is None is left out.

    >>> tag("b", "1 < 2", class_="small")
    '<b class="small">1 &lt; 2</b>'
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-") if key not in CAMEL else key}="{escape(_attribute(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{written}>") if name in VOID else Markup(f"<{name}{written}>{join(children)}</{name}>")


def _attribute(value: str | float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def number(value: float) -> str:
    """About three significant digits, as a label writes them: 0.634, 12.3, 1,404, 3.1×10⁻⁶."""
    size = abs(value)
    if not math.isfinite(value):
        return "not finite"
    if value == 0:
        return "0"
    if size < 0.001 or size >= 1e7:
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        times = "" if mantissa == "1.0" else f"{mantissa}×"
        return f"{times}10{str(int(exponent)).translate(SUPERSCRIPT)}".replace("-", "−")
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3 if size >= 0.1 else 4
    return f"{value:,.{digits}f}".replace("-", "−")


def fixed(value: float, digits: int = 3) -> str:
    """A figure of a table: the same digits in every row, a true minus sign."""
    return f"{value:.{digits}f}".replace("-", "−")


def signed(value: float, digits: int = 3) -> str:
    return (
        f"+{fixed(value, digits)}"
        if round(value, digits) > 0
        else fixed(value + 0.0 if round(value, digits) else 0.0, digits)
    )


def duration(seconds: float) -> str:
    """0.042 s, 31 s, 5 min 18 s, 2 h 05 min."""
    if seconds < 10:
        return f"{seconds:#.2g} s" if seconds < 1 else f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, second = divmod(whole, 60)
    return f"{minutes} min {second:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
