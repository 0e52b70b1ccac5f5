"""The files that a run leaves behind: their records, and how they are written, read and cut back on resume.

    runs/<name>/config.yaml                        the resolved configuration
    runs/<name>/environment.json                   versions and machine                       (rl/environment.py)
    runs/<name>/metrics.jsonl                      one StepMetrics a line, in the order of the run
    runs/<name>/validation/<stage>-<step>.jsonl    one ValidationRecord a line
    runs/<name>/summary.json, report.html          made from the above                        (rl/summary.py, rl/report.py)

A line is written by one append, so a killed run leaves at most one torn line, the last; readers leave it out and
`cut_after` removes it. A value that is not finite is written as null, because NaN is not JSON; readers give it back as NaN.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"
VALIDATION = "validation"

Corners = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """The metrics of one step of one stage; `time` is in seconds since the epoch.

    `time/step` among the metrics is the training step; `time/validate` and `time/checkpoint` lie between steps, outside it.
    `failures` counts the step's lost answers by reason ("reward: timed out").
    """

    stage: str
    step: int
    time: float
    metrics: Mapping[str, float]
    failures: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ValidationRecord:
    """One validation sample and the model's answer; every box is in original pixels of the scene.

    `prediction` is None when the answer held no box. `mode` names the sampling: greedy or sampled.
    """

    id: str
    width: int
    height: int
    target: Corners
    prediction: Corners | None
    iou: float
    picks_target: bool
    text: str
    mode: str = "greedy"
    distractors: tuple[Corners, ...] = field(default=())


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` with `text`: after a crash or on a full disk the old file or the new one is there, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


class MetricsWriter:
    """Appends StepMetrics to metrics.jsonl, one system call a line."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)

    def append(self, record: StepMetrics) -> None:
        metrics = {name: _finite(value) for name, value in record.metrics.items()}
        line = {"stage": record.stage, "step": record.step, "time": record.time, "metrics": metrics}
        if record.failures:
            line["failures"] = dict(record.failures)
        self._file.write(json.dumps(line, allow_nan=False).encode() + b"\n")

    def close(self) -> None:
        os.fsync(self._file.fileno())
        self._file.close()


def _whole_lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Every complete line and what it holds; a torn last line is left out. Raises ValueError for any other bad line."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                content = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number} is not JSON ({error}); remove the line to read the rest") from error
            yield line, content


def read_metrics(run_dir: Path) -> list[StepMetrics]:
    """metrics.jsonl in the order of the run; empty when there is none yet."""
    return [
        StepMetrics(
            stage=line["stage"],
            step=line["step"],
            time=line["time"],
            metrics={name: math.nan if value is None else float(value) for name, value in line["metrics"].items()},
            failures=line.get("failures", {}),
        )
        for _, line in _whole_lines(run_dir / METRICS)
    ]


def write_validation(run_dir: Path, stage: str, step: int, records: Iterable[ValidationRecord]) -> Path:
    """validation/<stage>-<step>.jsonl, whole or not at all."""
    path = run_dir / VALIDATION / f"{stage}-{step}.jsonl"
    write_atomically(path, "".join(json.dumps(asdict(record), allow_nan=False) + "\n" for record in records))
    return path


def _corners(values: list[float]) -> Corners:
    x1, y1, x2, y2 = values
    return (float(x1), float(y1), float(x2), float(y2))


def read_validation(run_dir: Path, stage: str, step: int) -> list[ValidationRecord]:
    """The records of one validation; empty when it left no file."""
    return [
        ValidationRecord(
            id=line["id"],
            width=line["width"],
            height=line["height"],
            target=_corners(line["target"]),
            prediction=None if line["prediction"] is None else _corners(line["prediction"]),
            iou=float(line["iou"]),
            picks_target=bool(line["picks_target"]),
            text=line["text"],
            mode=line.get("mode", "greedy"),
            distractors=tuple(_corners(box) for box in line.get("distractors", [])),
        )
        for _, line in _whole_lines(run_dir / VALIDATION / f"{stage}-{step}.jsonl")
    ]


def validation_steps(run_dir: Path, stage: str) -> list[int]:
    """The steps of `stage` that left a validation file, in order."""
    names = [path.stem.rpartition("-") for path in (run_dir / VALIDATION).glob("*.jsonl")]
    return sorted(int(step) for name, _, step in names if name == stage)


def cut_after(run_dir: Path, stage: str, step: int) -> int:
    """Forget what came after `step` of `stage`, so that a run resumed there records no step twice.

    Removes later metric lines (a torn one too) and the validation files of later steps and of stages not yet begun.
    Returns the number of metric lines kept. metrics.jsonl is replaced atomically.
    """
    kept: list[bytes] = []
    stages: set[str] = {stage}
    reached = False
    for line, content in _whole_lines(run_dir / METRICS):
        here = content["stage"] == stage
        if (here and content["step"] > step) or (reached and not here):
            break
        reached = reached or here
        stages.add(content["stage"])
        kept.append(line)
    if (run_dir / METRICS).exists():
        write_atomically(run_dir / METRICS, b"".join(kept).decode())
    for path in (run_dir / VALIDATION).glob("*.jsonl"):
        of_stage, _, at_step = path.stem.rpartition("-")
        if of_stage not in stages or (of_stage == stage and int(at_step) > step):
            path.unlink()
    return len(kept)
