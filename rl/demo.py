"""`make demo`: LOCUS end to end on this machine, on a tiny model and a tiny cue-search dataset, and what it learnt.

synthetic scenes in COCO's format ─► data.build locus ─► recipes/locus/tiny.yaml (Ray, vLLM, FSDP2) ─► report.html

python -m rl.demo [key=value …]             overrides of the recipe, e.g. seed=1 grpo.steps=50
python -m rl.demo --rebuild-warm-start      make recipes/locus/tiny_model again: random weights, then SFT to its gate
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from data.config import LocusConfig, SizeBin
from data.locus import build_locus
from data.parallel import available_cores
from data.photos import Split
from data.synthetic import SceneSpec, write_coco
from rl.config import ConfigError, Recipe, load_recipe
from rl.train import run_recipe

RECIPES = Path("recipes/locus")
DATA = Path("runs/data/locus-tiny")
HELD_OUT_SAMPLES = 384


@dataclass(frozen=True)
class Part:
    """One dataset of the demo: scenes of `spec` on one of the two sets of photographs, a sample an object."""

    photographs: Split
    spec: SceneSpec
    scenes: int
    seed: int


# Objects of one shape a scene, so that only the cue tells which is meant; corners on the 14-px patch grid.
_TRAIN = SceneSpec(objects=(1, 3), area=(0.06, 0.14), grid=14, gap=0, margin=0.1, patterns=("plain",))
HELD_OUT_SPEC = replace(_TRAIN, objects=(2, 3))
DEMO = {
    "train": Part("train", _TRAIN, 3000, seed=0),
    "held_out": Part("val", HELD_OUT_SPEC, 200, seed=0),
}
WARM_START = {"warm_start": Part("train", _TRAIN, 6000, seed=1)}


def build_data(parts: Mapping[str, Part]) -> None:
    """Write scenes in COCO's format and build their cue-search dataset, where it does not exist yet."""
    started = time.monotonic()
    missing = {name: part for name, part in parts.items() if not (DATA / name).exists()}
    cores = available_cores()
    for name, part in missing.items():
        coco = DATA / "coco" / name
        annotations = write_coco(coco, part.scenes, part.seed, part.photographs, part.spec, cores)
        objects = len(json.loads(annotations.read_text())["annotations"])
        config = LocusConfig(
            train_samples=0 if name == "held_out" else objects,
            validation_samples=HELD_OUT_SAMPLES if name == "held_out" else 0,
            bins={"any": SizeBin(0.0, 1.0)},
            mix={"any": 1.0},
            padding=(0.0, 0.0),
            augmented_bins=("any",),
            scene_storage="bytes",
        )
        build_locus(annotations, coco / part.photographs, DATA / name, config, cores)
    if missing:
        print(f"data: {', '.join(missing)} in {DATA} ({time.monotonic() - started:.0f} s)", flush=True)


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
            build_data({**WARM_START, "held_out": DEMO["held_out"]})
            return rebuild_warm_start(argv[1:])
        recipe = load_recipe(RECIPES / "tiny.yaml", argv)
    except ConfigError as error:
        print(f"config: {error}", file=sys.stderr)
        return 2
    build_data(DEMO)
    status = run_recipe(recipe)
    if status == 0:
        show(Path(recipe.resume) if recipe.resume else _newest_run(recipe))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
