"""StepTrace: records the steps that a recipe wants profiled, and writes trace.json when a stretch of them ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from rl.profile_config import ProfileConfig
from rl.trace import span
from rl.trace_file import FILE, Lane, write_trace

STEP = "step"  # the driver's span around every recorded step


class Tracing(Protocol):
    """Everybody who takes part in a step: `rl.actors.tracing.Tracing`."""

    def start(self, torch: bool) -> None: ...

    def stop(self) -> list[Lane]: ...


class StepTrace:
    """One for all stages of a run. Neighbouring steps are one recording, what lies between them included."""

    def __init__(self, config: ProfileConfig, run_dir: Path) -> None:
        self.config, self.path = config, run_dir / FILE
        self.wanted = config.wanted()
        self._recording: Tracing | None = None
        self._lanes: list[Lane] = []

    @contextmanager
    def step(self, stage: str, number: int, tracing: Tracing) -> Iterator[None]:
        """Around step `number` of a stage, counting from 1."""
        if number in self.wanted and self._recording is None:
            tracing.start(self.config.torch)
            self._recording = tracing
        with span(STEP, stage=stage, number=number):
            yield
        if number + 1 not in self.wanted:
            self.finish()

    def finish(self) -> None:
        """End the recording that is under way, if there is one, and write all there is."""
        if self._recording is None:
            return
        self._lanes = joined(self._lanes, self._recording.stop())
        self._recording = None
        write_trace(self.path, self._lanes)


def joined(before: Sequence[Lane], now: Sequence[Lane]) -> list[Lane]:
    """The lanes of two recordings; a name stands for one lane as long as it is one process."""
    found = {(lane.name, lane.process): lane for lane in before}
    for lane in now:
        known = found.get((lane.name, lane.process), Lane(lane.name, lane.host, lane.process, ()))
        events, lost = known.events + lane.events, known.lost + lane.lost
        found[lane.name, lane.process] = Lane(lane.name, lane.host, lane.process, events, lost)
    return list(found.values())
