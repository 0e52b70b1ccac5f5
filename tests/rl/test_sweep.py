"""The sweep: every cell run once with its own keys, the table beside the paper's, and going on after a stop."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rl.config import Recipe
from rl.sweep import main

SWEEP = """
recipe: recipe.yaml
name: grid
metric: validation/greedy/mean_iou
rows: {key: sft.attention_loss.margin, label: μ, values: [0.1, 0.2]}
columns: {key: sft.attention_loss.weight, label: β, values: [0.0, 0.5]}
rows_idle_at: [0.0]
paper: [[34.3, 57.1], [34.3, 50.2]]
"""
RECIPE = """
name: base
stages: [sft]
model: {path: nowhere}
data: {train: nowhere, validation: nowhere}
reward: {name: focus}
sft: {steps: 1}
"""


class Runs:
    """Stands for `rl.train.run_recipe`: writes what a run leaves, with a metric that tells the cell."""

    def __init__(self, statuses: dict[str, int] | None = None) -> None:
        self.seen: list[tuple[float, float]] = []
        self.statuses = statuses or {}

    def __call__(self, recipe: Recipe) -> int:
        loss = recipe.sft.attention_loss
        self.seen.append((loss.margin, loss.weight))
        status = self.statuses.get(recipe.name, 0)
        if status == 0:
            run_dir = Path(recipe.runs) / recipe.name / "20260101-000000"
            run_dir.mkdir(parents=True)
            (run_dir / "config.yaml").write_text("")
            lines = [
                {"stage": "sft", "step": step, "time": 0.0, "metrics": {"validation/greedy/mean_iou": value}, "failures": {}}
                for step, value in ((0, 0.0), (1, loss.margin + loss.weight))
            ]
            (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return status


@pytest.fixture
def sweep(tmp_path: Path) -> list[str]:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    return [str(tmp_path / "sweep.yaml"), f"runs={tmp_path / 'runs'}"]


def test_the_table_has_the_papers_shape(sweep: list[str], tmp_path: Path) -> None:
    runs = Runs()
    assert main(sweep, runs) == 0
    assert runs.seen == [(0.1, 0.0), (0.1, 0.5), (0.2, 0.5)]  # without a weight the margin changes nothing
    table = (tmp_path / "runs" / "grid" / "table.md").read_text().splitlines()
    assert table[2:] == [
        "| μ / β | 0 | 0.5 |",
        "|---|---:|---:|",
        "| 0.1 | 10.0 (34.3) | 60.0 (57.1) |",
        "| 0.2 | 10.0 (34.3) | 70.0 (50.2) |",
    ]


def test_it_goes_on_with_what_is_missing(sweep: list[str], tmp_path: Path) -> None:
    assert main(sweep, Runs({"0.1-0.5": 130})) == 130
    assert main(sweep, Runs({"0.1-0.5": 1})) == 1
    assert "| 0.1 | 10.0 (34.3) | – (57.1) |" in (tmp_path / "runs" / "grid" / "table.md").read_text()
    last = Runs()
    assert main(sweep, last) == 0
    assert last.seen == [(0.1, 0.5)]


def test_figures_of_other_settings_are_not_mixed_in(sweep: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(sweep, Runs()) == 0
    assert main([*sweep, "sft.steps=9"], Runs()) == 2
    assert "other settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("margin, label", "margins, label", "did you mean `sft.attention_loss.margin`"),
        ("[34.3, 57.1],", "", "2 rows of 2"),
        ("values: [0.0, 0.5]", "", "`columns.values`"),
        ("metric: validation/greedy/mean_iou", "metric: validation/greedy/iou", "one of mean_iou"),
        ("name: grid", "title: grid", "title"),
    ],
)
def test_what_cannot_run_says_why(
    sweep: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, message: str
) -> None:
    (tmp_path / "sweep.yaml").write_text(SWEEP.replace(old, new))
    assert main(sweep, Runs()) == 2
    assert message in capsys.readouterr().err
