"""A thread that owns an engine: it steps while there is work, and does what callers ask between two steps.

caller ── call(load, …) ──► ┌──────────────────────────────────┐
caller ◄── the result ───── │ asked? do it · busy? one step    │ ── finished groups ──► collect()
                            └──────────────────────────────────┘
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, ParamSpec, Protocol, TypeVar

from rl.protocols import SampledGroup

# Of every turn, the seconds in which posted calls begin while the engine is at work: to take on many requests at once would
# hold up those under way. An idle engine takes on all that were posted, so that they share its first step.
POSTED_S = 0.02

P = ParamSpec("P")
T = TypeVar("T")


class Stepped(Protocol):
    """What can be driven: `rl.sampler_stream.StreamingSampler`."""

    @property
    def busy(self) -> bool: ...

    def advance(self) -> list[SampledGroup]: ...


class EngineThread:
    """Everything that touches the engine happens in this one thread, from its construction on; see the picture above."""

    def __init__(self) -> None:
        self._asked: deque[Callable[[], object]] = deque()
        self._posted: deque[Callable[[], object]] = deque()
        self._calls: list[Future[Any]] = []
        self._finished: list[SampledGroup] = []
        self._engine: Stepped | None = None
        self._error: Exception | None = None
        self._busy_seconds = 0.0
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`function(…)` in the thread, between two steps; at once when this is the thread. Raises what it raises."""
        if threading.current_thread() is self._thread:
            return function(*args, **kwargs)
        future: Future[T] = Future()
        with self._changed:
            if self._error is not None:
                raise self._error
            self._calls.append(future)
            self._asked.append(lambda: _fulfil(future, lambda: self._timed(lambda: function(*args, **kwargs))))
            self._changed.notify_all()
        return future.result()

    def post(self, function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """`function(…)` in the thread; does not wait. What it raises ends the thread, and `collect` raises it."""
        self.post_all([lambda: function(*args, **kwargs)])

    def post_all(self, functions: Sequence[Callable[[], object]]) -> None:
        """As `post`, of several calls: an idle engine makes no step between the first and the last of them."""
        with self._changed:
            self._posted.extend(functions)
            self._changed.notify_all()

    def drive(self, engine: Stepped) -> None:
        """Step `engine` from now on, whenever it is busy."""
        self._engine = engine

    def collect(self) -> list[SampledGroup]:
        """The groups that ended since the last call; waits for one. Raises what a step raised."""
        with self._changed:
            self._changed.wait_for(lambda: self._finished or self._error is not None)
            if self._error is not None:
                raise self._error
            finished, self._finished = self._finished, []
            return finished

    @property
    def busy_seconds(self) -> float:
        """Seconds spent on steps and calls."""
        return self._busy_seconds

    def _run(self) -> None:
        try:
            while True:  # as long as its actor's process, or until a step fails
                asked = self._next()
                idle, began = not self._works(), time.perf_counter()
                for function in asked:
                    function()
                while self._posted and (idle or time.perf_counter() - began < POSTED_S):
                    self._timed(self._posted.popleft())
                self._step()
        except Exception as error:  # whoever waits for groups or asks for something is told
            with self._changed:
                self._error = error
                for future in self._calls:
                    if not future.done():
                        future.set_exception(error)
                self._changed.notify_all()

    def _timed(self, function: Callable[[], T]) -> T:
        """`function()`, whose seconds count before anyone hears of its result."""
        began = time.perf_counter()
        try:
            return function()
        finally:
            self._busy_seconds += time.perf_counter() - began

    def _works(self) -> bool:
        return self._engine is not None and self._engine.busy

    def _next(self) -> list[Callable[[], object]]:
        """What was asked meanwhile; waits until something is, or there is a step to do."""
        with self._changed:
            self._changed.wait_for(lambda: self._asked or self._posted or self._works())
            asked = list(self._asked)
            self._asked.clear()
            self._calls = [future for future in self._calls if not future.done()]
            return asked

    def _step(self) -> None:
        if self._engine is None or not self._engine.busy:
            return
        finished = self._timed(self._engine.advance)
        if finished:
            with self._changed:
                self._finished += finished
                self._changed.notify_all()


def _fulfil(future: Future[Any], function: Callable[[], Any]) -> None:
    try:
        future.set_result(function())
    except Exception as error:  # the caller's to handle; the engine steps on
        future.set_exception(error)
