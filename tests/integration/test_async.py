"""An asynchronous run on real Ray, real vLLM and real learners: within its bound, ended by Ctrl-C, resumed."""

from __future__ import annotations

import json
import signal
from pathlib import Path

from tests.integration.runs import run, run_until

ASYNC = ("grpo.max_staleness=1", "algorithm.rollout_is=token", "validation.every=2", "checkpoint.every=1")


def test_it_stays_within_its_bound_and_goes_on_after_ctrl_c_with_the_prompts_under_way(recipe: Path) -> None:
    stopped = run_until(recipe, '"step": 3', signal.SIGINT, *ASYNC, "grpo.steps=400")
    assert stopped.status == 130, stopped.err
    assert "Traceback" not in stopped.err
    assert stopped.run_dir is not None
    saved = sorted(stopped.run_dir.glob("checkpoints/grpo-*/state.json"), key=lambda path: path.stat().st_mtime)[-1]
    state = json.loads(saved.read_text())
    assert len(state["prompts"]["unsettled"]) == 2 * 4, "the prompts of two steps are on their way"

    resumed = run(recipe, *ASYNC, f"grpo.steps={state['step'] + 3}", f"resume={stopped.run_dir}")
    assert resumed.status == 0, resumed.err
    steps = [line["metrics"] for line in resumed.metrics() if "staleness/max" in line["metrics"]]
    assert len(steps) == state["step"] + 3
    assert max(step["staleness/max"] for step in steps) == 1
    assert all(step["groups/stale"] == 0 for step in steps)
    assert 0 < max(step.get("mismatch/max", 0.0) for step in steps) <= 1e-4
    assert all(0 <= step[f"throughput/idle_{role}"] <= 1 for step in steps for role in ("rollout", "reward"))
    assert all(0 <= step[f"throughput/{share}"] < 1 for step in steps for share in ("idle_learner", "overhead"))
