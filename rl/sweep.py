"""Runs a recipe over a grid of two keys and writes the table: `python -m rl.sweep SWEEP.yaml [key=value …]`.

    recipe: ../ablations/sft_attention.yaml                                   relative to the sweep's file
    metric: validation/greedy/mean_iou                                        of each run's last validation
    rows:    {key: sft.attention_loss.margin, label: μ, values: [0.025, 0.05]}
    columns: {key: sft.attention_loss.weight, label: β, values: [0.0, 0.25]}
    rows_idle_at: [0.0]                                                       columns where all rows are one run
    paper: [[34.3, 57.1], [34.3, 50.2]]                                       figures to stand beside ours (optional)

Runs go one after another into `runs/<name>/`, with sweep.json and table.md beside them, rewritten after every run. Started
again with the same settings it runs what is missing. A run that fails leaves its cell open; the others go on.
Exit status: 0 all cells filled, 1 some failed, 2 a sweep that cannot run, 130 interrupted.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from rl.config import ConfigError, Recipe, load_recipe, to_container
from rl.runlog import write_atomically

USAGE = (
    "usage: python -m rl.sweep SWEEP.yaml [key=value …]      e.g. recipes/focus/sweeps/margin_weight.yaml runs=/shared/runs"
)
METRICS = ("mean_iou", "acc@0.5", "acc@0.75", "parse_rate", "reward", "picks_target", "format_rate")
RunRecipe = Callable[[Recipe], int]


@dataclass
class Axis:
    """A key of the recipe, its name in the table, and the values it takes."""

    key: str = MISSING
    label: str = MISSING
    values: list[float] = MISSING


@dataclass
class Sweep:
    """The sweep's file."""

    recipe: str = MISSING
    name: str = MISSING
    metric: str = "validation/greedy/mean_iou"
    rows: Axis = field(default_factory=Axis)
    columns: Axis = field(default_factory=Axis)
    rows_idle_at: list[float] = field(default_factory=list)
    paper: list[list[float]] | None = None


@dataclass(frozen=True)
class Cell:
    """One run: its row's and its column's value. An idle row is the grid's first."""

    row: float
    column: float

    @property
    def name(self) -> str:
        return f"{self.row:g}-{self.column:g}"


def load_sweep(path: Path) -> Sweep:
    """Raises ConfigError for what cannot be a sweep."""
    if not path.is_file():
        raise ConfigError(f"there is no sweep {path}; see recipes/*/sweeps")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Sweep), OmegaConf.load(path))
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise ConfigError(f"{path.name} leaves `{missing[0]}` open")
        sweep = OmegaConf.to_object(merged)
    except (YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path.name}: {str(error).splitlines()[0]}") from error
    assert isinstance(sweep, Sweep)
    if not re.fullmatch(rf"validation/(greedy|sampled)/({'|'.join(METRICS)})", sweep.metric):
        raise ConfigError(f"{path.name}: `metric` is `{sweep.metric}`; validation/greedy/ with one of {', '.join(METRICS)}")
    rows, columns = len(sweep.rows.values), len(sweep.columns.values)
    if sweep.paper is not None and [len(line) for line in sweep.paper] != [columns] * rows:
        raise ConfigError(f"{path.name}: `paper` must have {rows} rows of {columns} figures")
    return sweep


def cell_of(sweep: Sweep, row: float, column: float) -> Cell:
    """The run behind a place of the table."""
    return Cell(sweep.rows.values[0] if column in sweep.rows_idle_at else row, column)


def cells(sweep: Sweep) -> list[Cell]:
    """Every run once, row by row."""
    places = [cell_of(sweep, row, column) for row in sweep.rows.values for column in sweep.columns.values]
    return list(dict.fromkeys(places))


class SweepRun:
    """A sweep in its folder: what is done, what is missing, and the table."""

    def __init__(self, sweep: Sweep, recipe_path: Path, overrides: Sequence[str]) -> None:
        self.sweep, self.recipe_path, self.overrides = sweep, recipe_path, list(overrides)
        self.folder = Path(self.recipe_of(cells(sweep)[0]).runs)
        # What the cells have in common; figures of other settings do not belong in the same table.
        self.settings = {"recipe": to_container(self.recipe_of(cells(sweep)[0])), "metric": sweep.metric}
        self.found = self._earlier()

    def recipe_of(self, cell: Cell) -> Recipe:
        sweep = self.sweep
        keys = [f"{sweep.rows.key}={cell.row}", f"{sweep.columns.key}={cell.column}", f"name={cell.name}"]
        recipe = load_recipe(self.recipe_path, [*self.overrides, *keys])
        recipe.runs = str(Path(recipe.runs) / sweep.name)
        return recipe

    def _earlier(self) -> dict[Cell, float]:
        place = self.folder / "sweep.json"
        if not place.exists():
            return {}
        earlier = json.loads(place.read_text())
        if earlier["settings"] != json.loads(json.dumps(self.settings)):
            raise ConfigError(f"{place} is of other settings; give another runs=… or remove it")
        return {Cell(cell["row"], cell["column"]): cell["value"] for cell in earlier["cells"]}

    def execute(self, run_recipe: RunRecipe) -> list[Cell]:
        """Run what is missing; returns the cells that failed. Raises KeyboardInterrupt when a run was interrupted."""
        failed = []
        for cell in cells(self.sweep):
            if cell in self.found:
                continue
            status = run_recipe(self.recipe_of(cell))
            if status == 130:
                raise KeyboardInterrupt
            if status:
                failed.append(cell)
            else:
                self.found[cell] = self._metric(cell)
            self.write()
        return failed

    def _metric(self, cell: Cell) -> float:
        """The last value of the metric that the cell's newest run has logged."""
        from rl.runlog import read_metrics

        run_dir = max(path.parent for path in (self.folder / cell.name).glob("*/config.yaml"))
        values = [
            record.metrics[self.sweep.metric] for record in read_metrics(run_dir) if self.sweep.metric in record.metrics
        ]
        if not values:
            raise ConfigError(f"{run_dir} has no metric `{self.sweep.metric}`; see the names in its metrics.jsonl")
        return values[-1]

    def write(self) -> None:
        """sweep.json and table.md."""
        done = [{"row": cell.row, "column": cell.column, "value": value} for cell, value in self.found.items()]
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / "sweep.json", json.dumps({"settings": self.settings, "cells": done}, indent=1))
        write_atomically(self.folder / "table.md", self.table())

    def table(self) -> str:
        """Rows × columns in Markdown, in percent; the paper's figure in brackets where there is one."""
        sweep = self.sweep
        head = [f"{sweep.rows.label} / {sweep.columns.label}", *(f"{value:g}" for value in sweep.columns.values)]
        lines = [f"| {' | '.join(head)} |", f"|---{'|---:' * len(sweep.columns.values)}|"]
        for r, row in enumerate(sweep.rows.values):
            texts = [self._text(r, c, cell_of(sweep, row, column)) for c, column in enumerate(sweep.columns.values)]
            lines.append(f"| {row:g} | {' | '.join(texts)} |")
        beside = " In brackets: the paper's." if sweep.paper else ""
        return "\n".join([f"{sweep.metric} in percent, {self.recipe_path.name}.{beside}", "", *lines, ""])

    def _text(self, r: int, c: int, cell: Cell) -> str:
        ours = f"{100 * self.found[cell]:.1f}" if cell in self.found else "–"
        return f"{ours} ({self.sweep.paper[r][c]:.1f})" if self.sweep.paper else ours


def main(argv: Sequence[str], run_recipe: RunRecipe | None = None) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(f"{__doc__}\n{USAGE}")
        return 0 if argv else 2
    try:
        path = Path(argv[0])
        sweep = load_sweep(path)
        run = SweepRun(sweep, path.parent / sweep.recipe, argv[1:])
        failed = run.execute(run_recipe or _train())
    except ConfigError as error:
        print(f"config: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped. The same command goes on with what is missing.", file=sys.stderr)
        return 130
    run.write()
    print(f"{run.table()}\n{run.folder / 'table.md'}")
    if failed:
        print(f"failed, see above: {', '.join(cell.name for cell in failed)}", file=sys.stderr)
    return 1 if failed else 0


def _train() -> RunRecipe:
    from rl.train import run_recipe

    return run_recipe


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
