"""Sampling beside learning: the tiny LOCUS recipe, synchronous and with samplers one and two steps ahead, side by side.

    python -m tests.bench.bench_async [--steps 60] [--bounds 0,1,2] [--workers 1] [--json]

The same steps, seed and prompts for every `grpo.max_staleness`. One sampler and one learner rank, so that on two cores each
has its own, as GPUs would be theirs: roles that share all cores have nothing to overlap. Times are medians and idle shares
means over the steps after the first quarter; IoU and picks-target are greedy, on the held-out scenes, before the first step
and after the last.
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

MEDIANS = {"step_s": "time/step", "tokens_per_s": "throughput/tokens_per_s"}
MEANS = {
    "idle_rollout": "throughput/idle_rollout",
    "idle_learner": "throughput/idle_learner",
    "idle_reward": "throughput/idle_reward",
    "staleness": "staleness/mean",
}
SUMS = {"stale_groups": "groups/stale", "carried_answers": "rollout/carried"}
QUALITY = {"iou": "validation/greedy/mean_iou", "picks_target": "validation/greedy/picks_target"}


def measure(bound: int, steps: int, samples: int, seed: int, workers: int) -> dict[str, float]:
    """One run with `grpo.max_staleness=bound` and `workers` samplers and learner ranks; what its metrics say."""
    with tempfile.TemporaryDirectory() as runs:
        overrides = [
            f"grpo.steps={steps}",
            f"grpo.max_staleness={bound}",
            f"runs={runs}",
            f"seed={seed}",
            f"rollout.actors={workers}",
            f"learner.ranks={workers}",
            "validation.every=0",
            "validation.sampled=false",
            f"validation.samples={samples}",
            "checkpoint.every=0",
            "tracking.sinks=[jsonl]",
            *(["algorithm.rollout_is=token"] if bound else []),
        ]
        recipe = load_recipe(RECIPES / "tiny.yaml", overrides)
        if run_recipe(recipe):
            raise SystemExit("the run failed; its message is above")
        (run_dir,) = (Path(runs) / recipe.name).iterdir()
        records = [record.metrics for record in read_metrics(run_dir)]
    warm = [metrics for metrics in records if "time/step" in metrics][max(1, steps // 4) :]
    validated = [metrics for metrics in records if QUALITY["iou"] in metrics]
    found = {name: statistics.median(metrics[key] for metrics in warm) for name, key in MEDIANS.items()}
    found |= {name: statistics.fmean(metrics.get(key, 0.0) for metrics in warm) for name, key in MEANS.items()}
    found |= {name: sum(metrics.get(key, 0.0) for metrics in records) for name, key in SUMS.items()}
    for name, key in QUALITY.items():
        found |= {f"{name}_before": validated[0][key], f"{name}_after": validated[-1][key]}
    return found


def row(bound: int, found: dict[str, float], synchronous: float) -> list[str]:
    """A line of the table; `synchronous`: the first run's seconds a step."""
    return [
        "synchronous" if bound == 0 else f"max_staleness={bound}",
        f"{found['step_s']:.2f} s",
        f"{synchronous / found['step_s']:.2f}×",
        f"{found['tokens_per_s']:.0f}",
        *(f"{found[f'idle_{role}']:.0%}" for role in ("rollout", "learner", "reward")),
        f"{found['staleness']:.2f}",
        f"{found['carried_answers']:.0f} / {found['stale_groups']:.0f}",
        f"{found['iou_before']:.3f} → {found['iou_after']:.3f}",
        f"{found['picks_target_before']:.3f} → {found['picks_target_after']:.3f}",
    ]


COLUMNS = (
    "loop",
    "step",
    "speed",
    "tokens/s",
    "samplers idle",
    "learner idle",
    "rewards idle",
    "staleness",
    "carried / dropped",
    "IoU",
    "picks target",
)


def main() -> None:
    parser = argparse.ArgumentParser(description="synchronous and asynchronous GRPO on the tiny recipe, side by side")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--bounds", default="0,1,2", help="values of grpo.max_staleness; the first one's speed is 1")
    parser.add_argument("--samples", type=int, default=384, help="held-out samples that are validated on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="samplers, and learner ranks")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    arguments = parser.parse_args()
    bounds = [int(bound) for bound in arguments.bounds.split(",")]
    fixed = (arguments.steps, arguments.samples, arguments.seed, arguments.workers)
    found = {bound: measure(bound, *fixed) for bound in bounds}
    if arguments.json:
        print(json.dumps(found))
        return
    table = Table(title=f"recipes/locus/tiny.yaml, {arguments.steps} steps, seed {arguments.seed}")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "loop" else "right")
    for bound in bounds:
        table.add_row(*row(bound, found[bound], found[bounds[0]]["step_s"]))
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
