"""A step's time on the tiny LOCUS recipe, by phase, and the share of it that is neither rollout nor update.

    python -m tests.bench.bench_step [--steps 40] [--json]

Runs the recipe as `make demo` does (two vLLM rollout actors, one reference, two FSDP2 ranks) without validation. The first
quarter of the steps warms up and is left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rl.config import load_recipe
from rl.demo import RECIPES
from rl.runlog import read_metrics
from rl.train import run_recipe
from tests.bench.rows import Row

NAME = "A step"
WORK = ("rollout", "update")


def measure(steps: int) -> dict[str, float]:
    """Median seconds of every phase, and of a whole step."""
    with tempfile.TemporaryDirectory() as runs:
        overrides = [
            f"grpo.steps={steps}",
            f"runs={runs}",
            "validation.every=0",
            "validation.samples=8",
            "checkpoint.every=0",
        ]
        recipe = load_recipe(RECIPES / "tiny.yaml", [*overrides, "tracking.sinks=[jsonl]"])
        if run_recipe(recipe):
            raise SystemExit("the run failed; its message is above")
        (run_dir,) = (Path(runs) / recipe.name).iterdir()
        records = [record for record in read_metrics(run_dir) if record.step > max(1, steps // 4)]
    names = sorted({name for record in records for name in record.metrics if name.startswith("time/")})
    phases = {name.removeprefix("time/"): [record.metrics.get(name, 0.0) for record in records] for name in names}
    return {name: statistics.median(values) for name, values in phases.items() if name not in ("validate", "checkpoint")}


def other_share(phases: dict[str, float]) -> float:
    """Share of a step that is neither rollout nor update."""
    return 1.0 - sum(phases[name] for name in WORK) / phases["step"]


def rows(quick: bool) -> list[Row]:
    """Rows of `make bench`: what of a step is work, and its phases."""
    steps = 24 if quick else 40
    phases = measure(steps)
    share, step = other_share(phases), phases["step"]
    whole = Row(
        name="share of a step in its phases rollout and update",
        value=1.0 - share,
        unit="",
        floor="all of it",
        ratio=1.0 - share,
        how=f"median of {steps - steps // 4} steps of recipes/locus/tiny.yaml, {step:.2f} s each; target 0.9",
    )
    others = sorted(((name, seconds) for name, seconds in phases.items() if name != "step"), key=lambda item: -item[1])
    return [whole, *(Row.part(name, seconds, "s", step) for name, seconds in others)]


def main() -> None:
    parser = argparse.ArgumentParser(description="time of a GRPO step on the tiny recipe, by phase")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    arguments = parser.parse_args()
    phases = measure(arguments.steps)
    share = other_share(phases)
    if arguments.json:
        print(json.dumps({"phases_s": phases, "neither_rollout_nor_update": share}))
        return
    table = Table(
        title=f"A step of recipes/locus/tiny.yaml: median of {arguments.steps - max(1, arguments.steps // 4)} steps"
    )
    for column in ("phase", "seconds", "share"):
        table.add_column(column, justify="left" if column == "phase" else "right")
    for name, seconds in sorted(phases.items(), key=lambda item: -item[1]):
        table.add_row(name, f"{seconds:.3f}", f"{seconds / phases['step']:.1%}")
    Console().print(table)
    print(f"neither rollout nor update: {share:.1%} (target: under 10 %)")


if __name__ == "__main__":
    main()
