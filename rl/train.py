"""Runs a recipe: `python -m rl.train RECIPE.yaml [key=value …]`; goes on with a stopped run by `resume=RUN_DIR`.

Exit status: 0 done, 1 failed with a message, 2 a recipe or an override that cannot run, 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from rl.commands import configured
from rl.config import Recipe, load_recipe

USAGE = "usage: python -m rl.train RECIPE.yaml [key=value …]      e.g. recipes/locus/tiny.yaml grpo.steps=20 seed=1"


def main(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(f"{__doc__}\n{USAGE}")
        return 0 if argv else 2
    recipe = configured(lambda: load_recipe(argv[0], argv[1:]))
    return recipe if isinstance(recipe, int) else run_recipe(recipe)


def run_recipe(recipe: Recipe) -> int:
    """Run all stages, and report on whatever was reached, however it ended."""
    if not _may_run(recipe):
        return 2
    from cluster.interruptions import Terminated
    from data.tiny_sets import make_missing
    from rl.run import Run, open_run_dir

    expected = _expected()
    run_dir: Path | None = None
    try:
        if recipe.data.synthetic:
            make_missing(recipe.data.synthetic, [Path(recipe.data.train), Path(recipe.data.validation)])
        run_dir = open_run_dir(recipe)
        print(f"{recipe.name}: {' → '.join(recipe.stages)}, seed {recipe.seed}, in {run_dir}", flush=True)
        Run(recipe, run_dir).execute()
        status = 0
    except (KeyboardInterrupt, Terminated) as stop:
        print(_stopped(recipe, run_dir), file=sys.stderr)
        status = stop.code if isinstance(stop, Terminated) else 130
    except expected as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        status = 1
    except Exception:
        traceback.print_exc()
        status = 1
    if run_dir is not None:
        _report(recipe, run_dir)
    return status


def _may_run(recipe: Recipe) -> bool:
    """Whether the recipe's reward exists and its plan fits; says what is wrong before anything heavy is imported."""
    from rewards.registry import RewardLookupError, resolve
    from rl.plan.gate import refusal

    try:
        resolve(recipe.reward.name, recipe.reward.kwargs)
    except RewardLookupError as error:
        print(f"config: `reward`: {error}", file=sys.stderr)
        return False
    refused = refusal(recipe)
    if refused:
        print("\n".join(f"plan: {line}" for line in refused), file=sys.stderr)
    return not refused


def _expected() -> tuple[type[BaseException], ...]:
    """Errors whose message is all a user needs; anything else shows its traceback."""
    from cluster.group import ActorError
    from cluster.placement import PlacementError
    from cluster.preflight import PreflightError
    from rl.checkpoint import CheckpointError
    from rl.evaluation import EvaluationError
    from rl.loop import MismatchError, NothingToLearnError, SyncError

    of_the_cluster = (ActorError, PlacementError, PreflightError)
    of_the_run = (CheckpointError, EvaluationError, MismatchError, NothingToLearnError, SyncError, ValueError)
    return (ConnectionError, *of_the_cluster, *of_the_run)  # the first: no Ray answers where RAY_ADDRESS says


def _stopped(recipe: Recipe, run_dir: Path | None) -> str:
    from rl.checkpoint import list_checkpoints

    if run_dir is None or not any(list_checkpoints(run_dir, stage) for stage in recipe.stages):
        return "Stopped before the first checkpoint; nothing to resume."
    return f"Stopped. Go on with: resume={run_dir}"


def _report(recipe: Recipe, run_dir: Path) -> None:
    """summary.json and report.html of what the run has logged so far."""
    from rl.report import write_report
    from rl.summary import write_summary

    if not (run_dir / "metrics.jsonl").exists():
        return
    write_summary(run_dir)
    print(f"report: {write_report(run_dir)}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
