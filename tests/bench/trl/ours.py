"""The project on a task that `task.py` wrote, a turn at a time: `rl.train`, waiting between steps.

python -m tests.bench.trl.ours DESCRIPTOR [key=value …]
"""

from __future__ import annotations

import sys
from pathlib import Path

import rl.run
from rl.config import load_recipe
from rl.demo import RECIPES
from rl.loop import GrpoLoop, StepReport
from rl.runlog import read_metrics
from rl.train import run_recipe
from tests.bench.trl.turns import Turns


def main() -> int:
    turns = Turns(int(sys.argv[1]))

    class TakeTurns(GrpoLoop):
        def step(self, step: int) -> StepReport:
            turns.before_step()
            return super().step(step)

    rl.run.GrpoLoop = TakeTurns  # type: ignore[misc]
    recipe = load_recipe(RECIPES / "tiny.yaml", sys.argv[2:])
    status = run_recipe(recipe)
    if status == 0:
        (run_dir,) = (Path(recipe.runs) / recipe.name).iterdir()
        records = [record.metrics for record in read_metrics(run_dir)]
        turns.finish([metrics["reward/total"] for metrics in records if "reward/total" in metrics])
    return status


if __name__ == "__main__":
    sys.exit(main())
