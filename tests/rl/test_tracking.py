"""The tracker and the run log: what is written, what a killed run leaves, and what a resume keeps."""

import io
import json
import math
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rl import tracking
from rl.console import ConsoleSink, step_line
from rl.environment import PACKAGES, ROOT
from rl.runlog import StepMetrics, ValidationRecord, cut_after, read_metrics, read_validation, validation_steps
from rl.tracking import RunContext, Tracker, check_sinks, open_tracker


def record(sample_id: str, **changes: object) -> ValidationRecord:
    fields = {
        "id": sample_id,
        "width": 112,
        "height": 84,
        "target": (1.0, 2.0, 30.0, 40.0),
        "prediction": (1.5, 2.0, 29.0, 41.0),
        "iou": 0.75,
        "picks_target": True,
        "text": "<answer>[1, 2, 3, 4]</answer>",
    }
    return ValidationRecord(**{**fields, **changes})  # type: ignore[arg-type]


def logged(run_dir: Path, *steps: tuple[str, int]) -> None:
    with open_tracker(["jsonl"], RunContext(run_dir, "run")) as tracker:
        for stage, step in steps:
            tracker.log(stage, step, {"reward/total": step / 10})


def places(run_dir: Path) -> list[tuple[str, int]]:
    return [(line.stage, line.step) for line in read_metrics(run_dir)]


def test_every_line_is_there_before_close(tmp_path: Path) -> None:
    tracker = open_tracker(["jsonl"], RunContext(tmp_path, "run"))
    tracker.log("grpo", 0, {"reward/total": 0.25})
    assert [line.metrics for line in read_metrics(tmp_path)] == [{"reward/total": 0.25}]
    tracker.close()


def test_a_value_that_is_not_finite_leaves_valid_json_and_reads_back_as_nan(tmp_path: Path) -> None:
    with open_tracker(["jsonl"], RunContext(tmp_path, "run")) as tracker:
        tracker.log("grpo", 1, {"grad_norm": math.inf, "loss/policy": math.nan, "lr": 1e-6})
    line = json.loads(
        (tmp_path / "metrics.jsonl").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON")
    )
    assert line["metrics"] == {"grad_norm": None, "loss/policy": None, "lr": 1e-6}
    (read,) = read_metrics(tmp_path)
    assert math.isnan(read.metrics["grad_norm"])
    assert math.isnan(read.metrics["loss/policy"])


def test_a_step_is_logged_once(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, [])
    tracker.log("sft", 5, {})
    tracker.log("grpo", 0, {})
    with pytest.raises(ValueError, match="grpo step 0 was logged after step 0"):
        tracker.log("grpo", 0, {})


def test_a_torn_last_line_is_left_out_and_a_broken_one_is_an_error(tmp_path: Path) -> None:
    logged(tmp_path, ("grpo", 1), ("grpo", 2))
    path = tmp_path / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"stage": "grpo", "st')
    assert places(tmp_path) == [("grpo", 1), ("grpo", 2)]
    path.write_text("not json\n" + path.read_text())
    with pytest.raises(ValueError, match="line 1 is not JSON"):
        read_metrics(tmp_path)


def test_resume_cuts_later_steps_and_goes_on_without_a_repeat(tmp_path: Path) -> None:
    logged(tmp_path, ("sft", 0), ("sft", 4), ("grpo", 0), ("grpo", 1), ("grpo", 2), ("grpo", 3))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"torn')
    assert cut_after(tmp_path, "grpo", 1) == 4
    logged(tmp_path, ("grpo", 2), ("grpo", 3))
    assert places(tmp_path) == [("sft", 0), ("sft", 4), ("grpo", 0), ("grpo", 1), ("grpo", 2), ("grpo", 3)]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize(
    ("stage", "step", "kept"),
    [
        ("sft", 4, [("sft", 0), ("sft", 4)]),  # the end of a stage: what the next one wrote goes
        ("sft", 2, [("sft", 0)]),
        ("grpo", 0, [("sft", 0), ("sft", 4), ("grpo", 0)]),
        ("grpo", -1, [("sft", 0), ("sft", 4)]),  # a stage's own start, before its first line
        ("grpo", 9, [("sft", 0), ("sft", 4), ("grpo", 0), ("grpo", 1)]),
    ],
)
def test_cut_after_at_the_edges(tmp_path: Path, stage: str, step: int, kept: list[tuple[str, int]]) -> None:
    logged(tmp_path, ("sft", 0), ("sft", 4), ("grpo", 0), ("grpo", 1))
    cut_after(tmp_path, stage, step)
    assert places(tmp_path) == kept


def test_cut_after_removes_validation_files_of_later_steps_and_stages(tmp_path: Path) -> None:
    tracker = open_tracker(["jsonl"], RunContext(tmp_path, "run"))
    for stage, step in (("sft", 0), ("sft", 10), ("grpo", 0), ("grpo", 10)):
        tracker.log(stage, step, {})
        tracker.validation(stage, step, [record("a")])
    tracker.close()
    cut_after(tmp_path, "grpo", 5)
    assert (validation_steps(tmp_path, "sft"), validation_steps(tmp_path, "grpo")) == ([0, 10], [0])
    cut_after(tmp_path, "sft", 0)
    assert (validation_steps(tmp_path, "sft"), validation_steps(tmp_path, "grpo")) == ([0], [])


def test_cut_after_an_empty_run_does_nothing(tmp_path: Path) -> None:
    assert cut_after(tmp_path, "grpo", 3) == 0
    assert list(tmp_path.iterdir()) == []


def test_validation_records_read_back_as_written(tmp_path: Path) -> None:
    records = [record("a", distractors=((5.0, 6.0, 7.0, 8.0),)), record("b", prediction=None, iou=0.0, mode="sampled")]
    Tracker(tmp_path, []).validation("grpo", 10, records)
    assert read_validation(tmp_path, "grpo", 10) == records
    assert read_validation(tmp_path, "grpo", 11) == []


def test_tensorboard_keeps_stages_apart_and_a_resume_hides_what_it_redoes(tmp_path: Path) -> None:
    for steps in ((("sft", 0), ("grpo", 0), ("grpo", 1), ("grpo", 2)), (("grpo", 1), ("grpo", 2))):
        with open_tracker(["tensorboard"], RunContext(tmp_path, "run")) as tracker:
            for stage, step in steps:
                tracker.log(stage, step, {"reward/total": float(step)})
    for stage, expected in (("sft", [0]), ("grpo", [0, 1, 2])):
        events = EventAccumulator(str(tmp_path / "tensorboard" / stage)).Reload()
        assert [scalar.step for scalar in events.Scalars("reward/total")] == expected


def test_an_unknown_sink_names_the_nearest_one() -> None:
    with pytest.raises(ValueError, match="no metrics sink `wandbb`; did you mean `wandb`"):
        check_sinks(["console", "wandbb"])


def test_a_sink_without_its_package_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tracking.VERL_SINKS, "wandb", "no_such_package_xyz")
    with pytest.raises(ValueError, match="needs the package `no_such_package_xyz`"):
        check_sinks(["wandb"])


def test_every_tracker_of_verl_goes_by_its_name() -> None:
    from verl.utils.tracking import Tracking

    ours = {"console", "tensorboard", "file"}  # the jsonl sink is verl's `file`
    assert set(tracking.VERL_SINKS) == set(Tracking.supported_backend) - ours


def test_wandb_through_verl_writes_an_offline_run_a_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    for name, value in {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    with open_tracker(["wandb"], RunContext(tmp_path, "run", recipe={"seed": 3})) as tracker:
        tracker.log("sft", 0, {"loss/lm": 2.0})
        tracker.log("grpo", 0, {"reward/total": 0.5})
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 2


def plain_console(metrics_per_step: list[dict[str, float]], planned: int) -> list[str]:
    stream, clock = io.StringIO(), iter(range(1000))
    sink = ConsoleSink({"grpo": planned}, Console(file=stream, width=200), clock=lambda: float(next(clock)))
    for step, metrics in enumerate(metrics_per_step):
        sink.log(StepMetrics("grpo", step, 0.0, metrics))
    sink.close()
    return stream.getvalue().splitlines()


def test_without_a_terminal_the_console_prints_a_plain_line_every_ten_steps() -> None:
    lines = plain_console([{}] + [{"reward/total": step / 10, "time/step": 1.0} for step in range(1, 13)], planned=12)
    assert lines == [
        "grpo 1/12 · reward 0.100 · 1.0 s/step · 0:11 left",
        "grpo 10/12 · reward 1.000 · 1.0 s/step · 0:02 left",
        "grpo 12/12 · reward 1.200 · 1.0 s/step",
    ]


def test_a_validation_is_always_printed() -> None:
    metrics = {
        "validation/greedy/mean_iou": 0.5,
        "validation/greedy/picks_target": 0.75,
        "validation/sampled/mean_iou": 0.25,
    }
    assert plain_console([{}, {}, metrics], planned=20) == [
        "grpo 2/20 · validation greedy · mean IoU 0.500 · picks target 0.750",
        "grpo 2/20 · validation sampled · mean IoU 0.250",
    ]


def test_a_terminal_shows_a_live_line_and_markup_in_figures_is_harmless() -> None:
    stream = io.StringIO()
    sink = ConsoleSink({"grpo": 5}, Console(file=stream, width=120, force_terminal=True))
    sink.log(StepMetrics("grpo", 3, 0.0, {"reward/total": 0.5, "mismatch/max": 3.1e-6}))
    sink.close()
    assert "3/5" in stream.getvalue()
    assert "mismatch 3.1e-06" in stream.getvalue()


def test_a_step_line_shows_what_the_stage_has() -> None:
    assert step_line({"loss/lm": 1.5, "time/step": 0.25, "lr": 1.0}, left_s=3725) == "loss 1.500 · 0.2 s/step · 1:02:05 left"


def test_peak_memory_rises_with_an_allocation_and_stays() -> None:
    """In a process of its own: this one's peak may lie far above what it holds now."""
    program = """
from rl.tracking import peak_memory_mib
before = peak_memory_mib()
block = bytearray(b"x") * (96 << 20)
risen = peak_memory_mib()
del block
print(before, risen, peak_memory_mib())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    before, risen, after = map(float, done.stdout.split())
    assert before + 90 <= risen <= before + 110
    assert after > risen - 2  # the kernel counts in batches of pages


def test_the_packages_of_the_environment_are_pinned_ones_or_optional() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = str([project["dependencies"], project["optional-dependencies"]])
    unasked = [name for name in PACKAGES if name not in asked and name not in {"sightline", "tokenizers"}]
    assert unasked == []


def test_the_run_log_tracker_and_report_import_neither_torch_nor_ray() -> None:
    code = "import sys, rl.tracking, rl.summary, rl.report; print({'torch', 'ray', 'vllm', 'verl'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "set()"
