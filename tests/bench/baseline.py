"""Compares rows with `baseline.json`, which holds ratios, not seconds: what has become worse, by row.

{"machine": {…}, "ratios": {"GRPO against TRL": {"samples/s, 16 prompts × …": 1.42}}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.rows import Row

BASELINE = Path(__file__).with_name("baseline.json")
TOLERANCE = 0.15
Rows = Mapping[str, Sequence[Row]]
Ratios = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Fall:
    """A row whose ratio is below what the baseline allows; `now` is None where the row is no longer measured."""

    benchmark: str
    row: str
    before: float
    now: float | None

    def __str__(self) -> str:
        if self.now is None:
            now = "no longer measured"
        else:
            now = f"{self.now:.2f} now ({self.now / self.before - 1:+.0%})"
        return f"{self.benchmark}: {self.row}: {self.before:.2f} in the baseline, {now}"


def ratios_of(measured: Rows) -> dict[str, dict[str, float]]:
    """The ratios that a baseline keeps."""
    kept = {
        name: {row.name: row.ratio for row in rows if row.kept and row.ratio is not None} for name, rows in measured.items()
    }
    return {name: ratios for name, ratios in kept.items() if ratios}


def falls(before: Ratios, measured: Rows, tolerance: float = TOLERANCE) -> list[Fall]:
    """Rows of the measured benchmarks whose ratio fell by more than `tolerance`, or that are gone.

    A benchmark that was not measured, or only in part because this machine lacks something (`Row.missing`), is not compared
    for what is not there.
    """
    found = []
    now = ratios_of(measured)
    for name, ratios in before.items():
        if name not in measured:
            continue
        excused = any(row.value is None for row in measured[name])
        for row, ratio in ratios.items():
            current = now.get(name, {}).get(row)
            gone = current is None and not excused
            if gone or (current is not None and current < (1 - tolerance) * ratio):
                found.append(Fall(name, row, ratio, current))
    return found


def unknown(before: Ratios, measured: Rows) -> list[str]:
    """Rows with a ratio to keep that the baseline has not."""
    now = ratios_of(measured)
    return [f"{name}: {row}" for name, ratios in now.items() for row in ratios if row not in before.get(name, {})]


def better_of(first: Sequence[Row], second: Sequence[Row]) -> list[Row]:
    """By row, the measurement with the higher ratio: other work on the machine only ever lowers one."""
    again = {row.name: row for row in second}
    return [max(row, again.get(row.name, row), key=lambda each: each.ratio or 0.0) for row in first]


def read(path: Path = BASELINE) -> Ratios:
    """Raises FileNotFoundError."""
    ratios: Ratios = json.loads(path.read_text())["ratios"]
    return ratios


def write(measured: Rows, machine: Mapping[str, Any], path: Path = BASELINE) -> None:
    """Replace the ratios of the measured benchmarks; those of others stay."""
    kept = dict(read(path)) if path.exists() else {}
    rounded = {name: {row: round(ratio, 3) for row, ratio in ratios.items()} for name, ratios in ratios_of(measured).items()}
    path.write_text(json.dumps({"machine": dict(machine), "ratios": kept | rounded}, indent=1, ensure_ascii=False) + "\n")
