"""`make demo`: LOCUS end to end on this machine, on a tiny model and a tiny cue-search dataset, and what it learnt.

synthetic scenes in COCO's format ─► data.build locus ─► recipes/locus/tiny.yaml (Ray, vLLM, FSDP2) ─► report.html

python -m rl.demo [key=value …]             overrides of the recipe, e.g. seed=1 grpo.steps=50
python -m rl.demo --rebuild-warm-start      make recipes/locus/tiny_model again: random weights, then SFT to its gate
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rl.config import ConfigError, Recipe, load_recipe
from rl.train import run_recipe

RECIPES = Path("recipes/locus")


def show(run_dir: Path) -> None:
    """What changed on held-out scenes, from summary.json."""
    summary = json.loads((run_dir / "summary.json").read_text())
    table = Table(title=f"Held-out scenes, {summary['stage']}, seed {summary['seed']}, {summary['steps']} steps")
    for column in ("metric", "sampling", "warm start", "after", "change"):
        table.add_column(column, justify="left" if column in ("metric", "sampling") else "right")
    names = {"mean_iou": "mean IoU", "acc@0.5": "ACC@0.5", "acc@0.75": "ACC@0.75"}
    names |= {"format_rate": "format", "picks_target": "picks target"}
    for mode, validation in summary["validation"].items():
        for name, label in names.items():
            if name not in validation["metrics"]:
                continue
            change = validation["metrics"][name]
            cells = (f"{change['start']:.3f}", f"{change['final']:.3f}", f"{change['delta']:+.3f}")
            table.add_row(label, mode, *cells)
    Console().print(table)


def rebuild_warm_start(overrides: Sequence[str]) -> int:
    """Random weights, SFT until greedy held-out mean IoU reaches the gate, export into the recipes."""
    from rl.tiny_backbone import write

    write(Path("runs/data/tiny-random"))
    recipe = load_recipe(RECIPES / "tiny_warm_start.yaml", overrides)
    status = run_recipe(recipe)
    if status == 0:
        shutil.copytree(_newest_run(recipe) / "export", RECIPES / "tiny_model", dirs_exist_ok=True)
        print(f"warm start: {RECIPES / 'tiny_model'}")
    return status


def _newest_run(recipe: Recipe) -> Path:
    return max(path.parent for path in (Path(recipe.runs) / recipe.name).glob("*/config.yaml"))


def main(argv: Sequence[str]) -> int:
    try:
        if argv[:1] == ["--rebuild-warm-start"]:
            return rebuild_warm_start(argv[1:])
        recipe = load_recipe(RECIPES / "tiny.yaml", argv)
    except ConfigError as error:
        print(f"config: {error}", file=sys.stderr)
        return 2
    status = run_recipe(recipe)
    if status == 0:
        show(Path(recipe.resume) if recipe.resume else _newest_run(recipe))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
