"""What a benchmark says: one record a row, with its floor, and the table and JSON made of them.

A row's `ratio` is how near the row comes to its floor (or, where `floor` names a rival, how far it is beyond it): always
higher is better, so that one rule finds a row that became worse. `value` is what a person reads, `ratio` what is kept.

    Row("learner update, 1,000 tokens, G=8", 0.41, "s", "6.6 x fewer tokens", ratio=5.2 / 6.6, how="shared / plain, in turn")

A benchmark module of this package has `NAME`, the group of its rows, and `rows(quick: bool) -> list[Row]`, which measures;
`tests.bench.__main__` lists it in `BENCHMARKS`.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table


@dataclass(frozen=True)
class Row:
    """`name` is unique in its benchmark and says the shape. `ratio` is None where nothing was measured: `how` says why.

    `low` and `high` are the ratio's smallest and largest over the measurement's blocks, where it has several. `kept`: the
    ratio is steady enough, here and on other machines, to be compared with the baseline.
    """

    name: str
    value: float | None
    unit: str
    floor: str
    ratio: float | None
    how: str
    low: float | None = None
    high: float | None = None
    kept: bool = True

    def __post_init__(self) -> None:
        for label, number in (("value", self.value), ("ratio", self.ratio)):
            if number is not None and not math.isfinite(number):
                raise ValueError(
                    f"row {self.name!r}: its {label} is {number}; a row that was not measured has None and says why"
                )

    @classmethod
    def missing(cls, name: str, why: str) -> Row:
        """A row that could not be measured on this machine."""
        return cls(name, None, "", "", None, why, kept=False)

    @classmethod
    def part(cls, name: str, value: float, unit: str, whole: float) -> Row:
        """A part of the row above it: its value, and its share of `whole` in words; nothing to compare."""
        return cls(f"  {name}", value, unit, "", None, f"{value / whole:.0%} of it", kept=False)


@dataclass(frozen=True)
class Spread:
    """A quantity over several blocks."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        found = list(values)
        return cls(statistics.median(found), min(found), max(found))


def in_turn(variants: Mapping[str, Callable[[], float]], rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Call every variant once a round, so that what else the machine does meets all of them; what each returned, by round.

    The order turns with every round, so that none always comes after the same other.
    """
    names = list(variants)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for number in range(warm_up + rounds):
        shift = number % len(names)
        for name in (*names[shift:], *names[:shift]):
            value = variants[name]()
            if number >= warm_up:
                taken[name].append(value)
    return taken


def ratio_of(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """The ratio of two series measured in turn, round by round: a round's company slows both of its numbers."""
    return Spread.of(above / below for above, below in zip(numerators, denominators, strict=True))


def table_of(groups: Mapping[str, Sequence[Row]], title: str) -> Table:
    """All rows, under the name of their benchmark."""
    table = Table(title=title)
    for column in ("row", "value", "floor", "ratio", "min – max", "how"):
        table.add_column(column, justify="right" if column in ("value", "ratio", "min – max") else "left")
    for group, rows in groups.items():
        table.add_section()
        table.add_row(f"[bold]{group}[/bold]")
        for row in rows:
            table.add_row(row.name, *_cells(row), row.how)
    return table


def _cells(row: Row) -> tuple[str, str, str, str]:
    value = "–" if row.value is None else f"{_number(row.value)} {row.unit}".rstrip()
    ratio = "–" if row.ratio is None else f"{row.ratio:.2f}"
    spread = "" if row.low is None or row.high is None else f"{row.low:.2f} – {row.high:.2f}"
    return value, row.floor, ratio, spread


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def write_json(groups: Mapping[str, Sequence[Row]], machine: Mapping[str, Any], path: Path) -> None:
    """Rows by benchmark, and the machine they were measured on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"machine": dict(machine), "rows": {group: [asdict(row) for row in rows] for group, rows in groups.items()}}
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, list[Row]]:
    """The rows that `write_json` wrote."""
    content = json.loads(path.read_text())
    return {group: [Row(**row) for row in rows] for group, rows in content["rows"].items()}
