"""The console sink: one live line a stage on a terminal, one plain line every few steps elsewhere.

grpo ━━╸━━━━━━━━━━━━━ 12/100 reward 0.612 · IoU 0.571 · mismatch 3.1e-06 · 2.9 s/step · 4:12 left
grpo 10/100 · validation greedy · mean IoU 0.634 · ACC@0.5 0.688 · format 0.992 · picks target 0.871
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Column

from rl.runlog import StepMetrics

PLAIN_EVERY = 10
PACE_WINDOW = 20
BAR_WIDTH = 16

# Shown in this order where a step has them.
SHOWN: Mapping[str, tuple[str, str]] = {
    "loss/lm": ("loss", ".3f"),
    "reward/total": ("reward", ".3f"),
    "reward/iou": ("IoU", ".3f"),
    "mismatch/max": ("mismatch", ".1e"),
    "time/step": ("", ".1f"),
}
VALIDATION_SHOWN: Mapping[str, str] = {
    "mean_iou": "mean IoU",
    "acc@0.5": "ACC@0.5",
    "acc@0.75": "ACC@0.75",
    "format_rate": "format",
    "picks_target": "picks target",
}


def _clock_text(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def step_line(metrics: Mapping[str, float], left_s: float | None) -> str:
    """The figures of one step, in one line."""
    parts = []
    for name, (label, form) in SHOWN.items():
        if name in metrics:
            value = f"{metrics[name]:{form}}"
            parts.append(f"{value} s/step" if name == "time/step" else f"{label} {value}")
    if parts and left_s:
        parts.append(f"{_clock_text(left_s)} left")
    return " · ".join(parts)


def validation_lines(metrics: Mapping[str, float]) -> list[str]:
    """One line for every sampling mode (greedy, sampled) that was validated."""
    modes = dict.fromkeys(name.split("/")[1] for name in metrics if name.startswith("validation/") and name.count("/") == 2)
    lines = []
    for mode in modes:
        shown = ((label, metrics.get(f"validation/{mode}/{name}", math.nan)) for name, label in VALIDATION_SHOWN.items())
        figures = " · ".join(f"{label} {value:.3f}" for label, value in shown if not math.isnan(value))
        lines.append(f"validation {mode} · {figures}")
    return lines


class ConsoleSink:
    """Progress of the run for a person watching. `planned_steps` gives each stage's length for the bar and the time left."""

    def __init__(
        self,
        planned_steps: Mapping[str, int],
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._planned = planned_steps
        self._console = console or Console()
        self._clock = clock
        self._stage: str | None = None
        self._stamps: deque[tuple[int, float]] = deque(maxlen=PACE_WINDOW)
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def log(self, record: StepMetrics) -> None:
        if record.stage != self._stage:
            self._begin(record.stage)
        self._stamps.append((record.step, self._clock()))
        line = step_line(record.metrics, self._left_s(record))
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=record.step, figures=line)
        elif line and (record.step % PLAIN_EVERY == 0 or record.step in (1, self._planned.get(record.stage))):
            self._print(f"{self._place(record)} · {line}")
        for validation in validation_lines(record.metrics):
            self._print(f"{self._place(record)} · {validation}")

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _begin(self, stage: str) -> None:
        self.close()
        self._stage = stage
        self._stamps.clear()
        if self._console.is_terminal:
            total = self._planned.get(stage)
            self._progress = Progress(
                TextColumn(stage, table_column=Column(min_width=len(stage), no_wrap=True)),
                BarColumn(bar_width=BAR_WIDTH, table_column=Column(min_width=BAR_WIDTH)),
                MofNCompleteColumn(table_column=Column(min_width=2 * len(str(total)) + 1, no_wrap=True)),
                TextColumn("{task.fields[figures]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
                console=self._console,
            )
            self._task = self._progress.add_task(stage, total=total, figures="")
            self._progress.start()

    def _left_s(self, record: StepMetrics) -> float | None:
        """Remaining steps at the pace of the last PACE_WINDOW, validations between them included."""
        planned = self._planned.get(record.stage)
        (first_step, first_at), (last_step, last_at) = self._stamps[0], self._stamps[-1]
        if planned is None or last_step == first_step:
            return None
        return max(0, planned - record.step) * (last_at - first_at) / (last_step - first_step)

    def _place(self, record: StepMetrics) -> str:
        planned = self._planned.get(record.stage)
        return f"{record.stage} {record.step}" if planned is None else f"{record.stage} {record.step}/{planned}"

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)
