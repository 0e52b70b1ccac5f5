"""Time of every phase of a step; a phase is a span too, while somebody records."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rl.trace import span


class PhaseClock:
    """Seconds by phase; `lap` hands them out as metrics and starts anew.

    >>> with clock.phase("rollout"): ...
    >>> clock.lap()
    {'time/rollout': 1.2, 'time/step': 1.3}
    """

    def __init__(self) -> None:
        self._phases: dict[str, float] = {}
        self._started = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            with span(name):
                yield
        finally:
            self._phases[name] = self._phases.get(name, 0.0) + time.perf_counter() - began

    def lap(self) -> dict[str, float]:
        now = time.perf_counter()
        metrics = {f"time/{name}": seconds for name, seconds in self._phases.items()} | {"time/step": now - self._started}
        self._phases, self._started = {}, now
        return metrics
