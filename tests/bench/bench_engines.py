"""The tiny recipes under every engine: how far each loss curve is from FSDP2's on one rank, and a step's time.

    python -m tests.bench.bench_engines [--recipes locus,focus] [--engines fsdp,zero2,zero3] [--ranks 1,2] [--lora 0,8]
                                        [--steps 4] [--json]

Every cell is a run of `python -m rl.train` on real Ray and vLLM: LOCUS is GRPO with a reference, FOCUS is SFT with the
attention loss, then GRPO held to SFT's policy. The same seed in all of them, so that the curves should be one curve.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rl.demo import RECIPES
from rl.runlog import read_metrics

ENGINES = {
    "fsdp": ("learner.engine=fsdp",),
    "zero2": ("learner.engine=deepspeed", "learner.zero_stage=2"),
    "zero3": ("learner.engine=deepspeed", "learner.zero_stage=3"),
}
SHORT = (
    *("rollout.actors=1", "grpo.prompts_per_step=8", "grpo.prompts_per_update=8", "grpo.num_generations=4"),
    *("sft.batch_size=8", "learner.tokens_per_micro_batch=1024"),
    *(
        "validation.every=0",
        "validation.samples=8",
        "validation.sampled=false",
        "checkpoint.every=0",
        "tracking.sinks=[jsonl]",
    ),
)
LOSSES = ("loss/policy", "loss/kl", "loss/attention", "loss/lm")


@dataclass(frozen=True)
class Cell:
    """One run of the matrix."""

    recipe: str
    engine: str
    ranks: int
    lora: int

    @property
    def baseline(self) -> Cell:
        return Cell(self.recipe, "fsdp", 1, self.lora)


@dataclass(frozen=True)
class Curve:
    """The losses of every step, stage after stage, and the median time of an update without the first of each stage."""

    steps: tuple[dict[str, float], ...]
    update_s: float

    def gap(self, other: Curve) -> float:
        """The largest difference of a loss at a step."""
        assert [step.keys() for step in self.steps] == [step.keys() for step in other.steps]
        return max(abs(a[name] - b[name]) for a, b in zip(self.steps, other.steps, strict=True) for name in a)


class RunError(RuntimeError):
    """A run of the matrix ended with an error."""


def curve(cell: Cell, steps: int) -> Curve:
    """Run `cell`, `steps` of each stage. Raises RunError with what the run printed."""
    with tempfile.TemporaryDirectory() as runs:
        overrides = [f"runs={runs}", f"grpo.steps={steps}", f"sft.steps={steps}", f"learner.ranks={cell.ranks}"]
        overrides += [f"reference.ranks={cell.ranks}", f"model.lora.rank={cell.lora}", *ENGINES[cell.engine], *SHORT]
        command = [sys.executable, "-m", "rl.train", str(RECIPES.parent / cell.recipe / "tiny.yaml"), *overrides]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RunError(f"{cell}: {done.stdout}{done.stderr}")
        (run_dir,) = Path(runs).glob("*/*")
        records = [record for record in read_metrics(run_dir) if record.step]
    losses = tuple({name: record.metrics[name] for name in LOSSES if name in record.metrics} for record in records)
    times = [record.metrics["time/update"] for record in records if record.step > 1]
    return Curve(losses, statistics.median(times))


def cells(recipes: Sequence[str], engines: Sequence[str], ranks: Sequence[int], lora: Sequence[int]) -> list[Cell]:
    """The matrix, each baseline before what is compared with it."""
    asked = [Cell(recipe, engine, n, rank) for recipe in recipes for rank in lora for engine in engines for n in ranks]
    return list(dict.fromkeys(each for cell in asked for each in (cell.baseline, cell)))


def measure(asked: Sequence[Cell], steps: int) -> Iterator[tuple[Cell, float, float]]:
    """Cell by cell: its largest difference to the baseline's curve, and an update's seconds."""
    curves: dict[Cell, Curve] = {}
    for cell in asked:
        curves[cell] = curve(cell, steps)
        yield cell, curves[cell].gap(curves[cell.baseline]), curves[cell].update_s


def main() -> None:
    parser = argparse.ArgumentParser(description="loss curves of the tiny recipes under every engine")
    parser.add_argument("--recipes", default="locus,focus")
    parser.add_argument("--engines", default="fsdp,zero2,zero3")
    parser.add_argument("--ranks", default="1,2")
    parser.add_argument("--lora", default="0,8")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--json", action="store_true", help="print one JSON object a cell instead of a table")
    arguments = parser.parse_args()
    ranks, lora = ([int(number) for number in given.split(",")] for given in (arguments.ranks, arguments.lora))
    asked = cells(arguments.recipes.split(","), arguments.engines.split(","), ranks, lora)
    table = Table(title=f"The tiny recipes, {arguments.steps} steps of each stage, against FSDP2 on one rank")
    for column in ("recipe", "LoRA", "engine", "ranks", "largest difference of a loss", "update, s"):
        table.add_column(column, justify="left" if column in ("recipe", "engine") else "right")
    for cell, gap, seconds in measure(asked, arguments.steps):
        if arguments.json:
            print(json.dumps({**asdict(cell), "gap": gap, "update_s": seconds}), flush=True)
        table.add_row(cell.recipe, str(cell.lora or "-"), cell.engine, str(cell.ranks), f"{gap:.1e}", f"{seconds:.3f}")
    if not arguments.json:
        Console().print(table)


if __name__ == "__main__":
    main()
