"""A recorded step in the report: shares by hand, what is drawn, and a page that still asks for nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from rl.report import render
from rl.report.spans import covered, gaps, last_step, merged
from rl.report.timeline import in_words
from rl.runlog import MetricsWriter, StepMetrics
from rl.trace import CALL, ENGINE, TORCH, WAIT, Event
from rl.trace_file import Lane, write_trace

BEGAN = 1_700_000_000_000_000_000


def event(name: str, start: float, end: float, kind: str = CALL, thread: int = 1, **args: float | str) -> Event:
    """Seconds since the recording began."""
    return Event(name, BEGAN + round(start * 1e9), round((end - start) * 1e9), thread, f"thread {thread}", kind, args)


def lanes() -> list[Lane]:
    """Step 7 is [10, 20]. Samplers compute in [11, 14], the learner in [15, 19], of which it waits for one second."""
    driver = (
        event("step", 0, 9, stage="grpo", number=6),
        event("step", 10, 20, stage="grpo", number=7),
        event("rollout", 10.5, 14),
        event("reward", 14, 14.5),
        event("update", 14.5, 19),
        event("publish", 19, 20),
    )
    first = (event("generate", 11, 13), event("prefill", 11.5, 12, ENGINE, prompts=4), event("load", 19, 20))
    second = (event("decode", 12, 14, ENGINE, thread=2), event("load", 19.5, 21))
    learner = (
        event("update", 15, 19),
        event("forward", 15, 16),
        event("attention", 15.2, 15.4),
        event("wait for reference", 16, 17, WAIT),
        event("aten::mm", 15, 16, TORCH),
    )
    named = {"driver": driver, "rollout-0": first, "rollout-1": second, "learner-0": learner}
    return [Lane(name, "here", 1, events) for name, events in named.items()]


def test_shares_of_the_last_step_by_hand() -> None:
    view = last_step(lanes(), "grpo")
    assert view is not None
    assert (view.stage, view.number, view.seconds) == ("grpo", 7, 10.0)
    assert view.computed == {"rollout": pytest.approx(0.3), "learner": pytest.approx(0.4)}
    # rollout-1: [12, 14] and [19.5, 20], cut at the step's end; learner-0: 4 s less the one it waited.
    assert view.busy == {"rollout-0": pytest.approx(0.3), "rollout-1": pytest.approx(0.25), "learner-0": pytest.approx(0.3)}
    assert view.nobody == ((0.0, 1.0), (4.0, 5.0), (9.0, 10.0))
    assert view.overhead == pytest.approx(0.3)
    assert dict(view.overhead_by_phase) == {
        "publish": pytest.approx(0.1),
        "rollout": pytest.approx(0.05),
        "reward": pytest.approx(0.05),
        "update": pytest.approx(0.05),
    }
    assert last_step(lanes(), "sft") is None
    assert last_step([], "grpo") is None


def test_bars_are_nested_two_deep_and_torchs_events_are_left_to_the_file() -> None:
    view = last_step(lanes(), "grpo")
    assert view is not None
    drawn = {row.lane: [(bar.name, bar.start, bar.end, bar.depth) for bar in row.bars] for row in view.rows}
    assert drawn["driver"][0] == ("rollout", 0.5, 4.0, 0)
    assert drawn["rollout-0"] == [("generate", 1.0, 3.0, 0), ("prefill", 1.5, 2.0, 1), ("load", 9.0, 10.0, 0)]
    assert drawn["learner-0"] == [("update", 5.0, 9.0, 0), ("forward", 5.0, 6.0, 1), ("wait for reference", 6.0, 7.0, 1)]


def test_unions_and_what_they_leave() -> None:
    assert covered([(5, 6), (0, 2), (1, 3), (3, 4)]) == [(0, 4), (5, 6)]
    assert gaps([(1.0, 4.0), (5.0, 6.0)], 6.0) == [(0.0, 1.0), (4.0, 5.0)]
    assert gaps([], 2.0) == [(0.0, 2.0)]


def test_bars_too_narrow_to_be_seen_are_drawn_together() -> None:
    view = last_step(
        [
            Lane(
                "driver",
                "here",
                1,
                (
                    event("step", 0, 4, stage="grpo", number=1),
                    *(event("decode", at / 10, at / 10 + 0.09, ENGINE) for at in range(30)),
                ),
            )
        ],
        "grpo",
    )
    assert view is not None
    assert [(round(bar.end, 2), count) for bar, count in merged(view.rows[0].bars, 0.2)] == [(2.99, 30)]
    assert len(list(merged(view.rows[0].bars, 0.05))) == 30


def test_the_step_is_on_the_page_of_its_stage_and_the_page_asks_for_nothing(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: demo\nstages: [grpo]\n")
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    writer.append(StepMetrics("grpo", 7, 0.0, {"time/step": 10.0, "throughput/overhead": 0.3}))
    writer.close()
    assert "timeline" not in render(tmp_path).split("</style>")[1]
    write_trace(tmp_path / "trace.json", lanes())
    page = render(tmp_path).split("</style>")[1]
    view = last_step(lanes(), "grpo")
    assert view is not None
    assert in_words(view) in page
    assert "Step 7 took 10 s" in page and "For 30% neither samplers nor learner did" in page
    assert 'href="trace.json"' in page and "http" not in page and "<script" not in page
    for name in ("driver", "rollout-1", "learner-0", "prefill", "prompts 4", "wait for reference"):
        assert name in page
    assert "aten::mm" not in page
