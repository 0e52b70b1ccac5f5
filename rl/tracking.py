"""Metrics of a run, sent to every sink the recipe names: the tracker and the registry of sinks.

    tracker = open_tracker(["console", "jsonl", "tensorboard"], RunContext(run_dir, "demo", …))
    tracker.log("grpo", 12, {"reward/total": 0.61, "time/step": 2.9})
    tracker.validation("grpo", 12, records)

Sinks of our own are in SINKS; any other tracker that verl knows (wandb, mlflow, swanlab, …) goes by its name and is
imported only then. A resumed run first calls `runlog.cut_after`, then opens a tracker as if it were new.
"""

from __future__ import annotations

import difflib
import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from rl.console import ConsoleSink
from rl.runlog import METRICS, MetricsWriter, StepMetrics, ValidationRecord, write_validation

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

# verl's trackers, and the package each of them imports.
VERL_SINKS: Mapping[str, str] = {
    "wandb": "wandb",
    "mlflow": "mlflow",
    "swanlab": "swanlab",
    "vemlp_wandb": "volcengine_ml_platform",
    "clearml": "clearml",
    "trackio": "trackio",
    "rl_insight": "rl_insight",
}


@dataclass(frozen=True, slots=True)
class RunContext:
    """What sinks need to know of a run: its folder, its names, the steps each stage plans, and its resolved recipe."""

    run_dir: Path
    name: str
    project: str = "sightline"
    planned_steps: Mapping[str, int] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)


class Sink(Protocol):
    """Where metrics go. `log` is called once a step, in the order of the run."""

    def log(self, record: StepMetrics) -> None: ...

    def close(self) -> None: ...


class JsonlSink:
    """metrics.jsonl, the source of summary.json and report.html."""

    def __init__(self, context: RunContext) -> None:
        self._writer = MetricsWriter(context.run_dir / METRICS)

    def log(self, record: StepMetrics) -> None:
        self._writer.append(record)

    def close(self) -> None:
        self._writer.close()


class TensorBoardSink:
    """Event files under run_dir/tensorboard, one TensorBoard run a stage, because every stage counts steps from 0."""

    def __init__(self, context: RunContext) -> None:
        self._root = context.run_dir / "tensorboard"
        self._writers: dict[str, SummaryWriter] = {}

    def _writer(self, record: StepMetrics) -> SummaryWriter:
        if record.stage not in self._writers:
            from torch.utils.tensorboard import SummaryWriter

            # purge_step hides what a killed run wrote after the checkpoint that this one goes on from.
            self._writers[record.stage] = SummaryWriter(str(self._root / record.stage), purge_step=record.step)
        return self._writers[record.stage]

    def log(self, record: StepMetrics) -> None:
        writer = self._writer(record)
        for name, value in record.metrics.items():
            writer.add_scalar(name, value, global_step=record.step, walltime=record.time)

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


class VerlSink:
    """One of verl's trackers. Every stage is an experiment of its own, `<run>-<stage>`, because steps start anew."""

    def __init__(self, backend: str, context: RunContext) -> None:
        self._backend = backend
        self._context = context
        self._stage: str | None = None
        self._tracking: Any = None  # verl.utils.tracking.Tracking, which is not typed

    def log(self, record: StepMetrics) -> None:
        if self._tracking is None or record.stage != self._stage:
            self.close()
            self._tracking, self._stage = self._open(record.stage), record.stage
        self._tracking.log(data=dict(record.metrics), step=record.step)

    def _open(self, stage: str) -> Any:
        from verl.utils.tracking import Tracking

        context = self._context
        recipe = {"trainer": {}, **context.recipe}  # verl's W&B tracker looks up `trainer`
        return Tracking(context.project, f"{context.name}-{stage}", default_backend=self._backend, config=recipe)

    def close(self) -> None:
        if self._tracking is not None:
            self._tracking.finish()
            self._tracking = None


def _console(context: RunContext) -> Sink:
    return ConsoleSink(context.planned_steps)


SINKS: Mapping[str, Callable[[RunContext], Sink]] = {
    "console": _console,
    "jsonl": JsonlSink,
    "tensorboard": TensorBoardSink,
}


def check_sinks(names: Sequence[str]) -> None:
    """Raises ValueError for a sink that does not exist or whose package is not installed; imports neither."""
    for name in names:
        if name in SINKS:
            continue
        known = [*SINKS, *VERL_SINKS]
        if name not in VERL_SINKS:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean `{near[0]}`? " if near else ""
            raise ValueError(f"there is no metrics sink `{name}`; {hint}one of {', '.join(known)}")
        if importlib.util.find_spec(VERL_SINKS[name]) is None:
            package = VERL_SINKS[name]
            raise ValueError(
                f"the metrics sink `{name}` needs the package `{package}`, which is not installed: pip install it"
            )


class Tracker:
    """Stamps the metrics of a step and hands them to every sink; writes validation records beside them."""

    def __init__(self, run_dir: Path, sinks: Sequence[Sink], clock: Callable[[], float] = time.time) -> None:
        self._run_dir = run_dir
        self._sinks = tuple(sinks)
        self._clock = clock
        self._last: tuple[str, int] | None = None

    def log(self, stage: str, step: int, metrics: Mapping[str, float], failures: Mapping[str, int] | None = None) -> None:
        """Record one step, once; `failures` counts its lost answers by reason.

        Raises ValueError when `step` does not come after the stage's last.
        """
        if self._last is not None and self._last[0] == stage and step <= self._last[1]:
            raise ValueError(
                f"{stage} step {step} was logged after step {self._last[1]}; log a step once, all metrics together"
            )
        self._last = (stage, step)
        values = {name: float(value) for name, value in metrics.items()}
        record = StepMetrics(stage, step, self._clock(), values, dict(failures or {}))
        for sink in self._sinks:
            sink.log(record)

    def validation(self, stage: str, step: int, records: Sequence[ValidationRecord]) -> None:
        """Keep what the policy answered to every validation sample at `step`, for the report's gallery."""
        write_validation(self._run_dir, stage, step, records)

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def open_tracker(names: Sequence[str], context: RunContext) -> Tracker:
    """A tracker with the sinks named. Raises ValueError for a name that does not exist or lacks its package."""
    check_sinks(names)
    sinks = [SINKS[name](context) if name in SINKS else VerlSink(name, context) for name in dict.fromkeys(names)]
    return Tracker(context.run_dir, sinks)


def peak_memory_mib() -> float:
    """This process's largest resident set so far, in MiB: VmHWM, which unlike ru_maxrss is not inherited from a parent.

    Linux only, as vLLM is. Raises ValueError where /proc/self/status has no VmHWM.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise ValueError("/proc/self/status has no VmHWM line: the peak memory of a process is read on Linux only")
