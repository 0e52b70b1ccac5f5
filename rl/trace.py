"""Spans: who did what when in this process. Recorded while a run profiles a step, and nothing at all otherwise.

    with span("pack", rows=4): ...         around a few lines
    @spanned("backward")                   around a function
    @traced("update", "publish")           around the named methods of an actor

    start() ─► spans; what sources add: torch's profiler, vLLM's steps ─► stop() ─► Recording

Begin and length are read from the monotonic clock, which all processes of a machine share, and given as nanoseconds of the
wall clock as it was when the recording began. Knows neither Ray nor torch.
"""

from __future__ import annotations

import functools
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, ParamSpec, Protocol, TypeVar

# Of a process and recording: some 100 MB. What comes after is counted and left out.
MAX_EVENTS = 500_000
READINGS = 9

CALL, WAIT, ENGINE, TORCH = "call", "wait", "engine", "torch"

P = ParamSpec("P")
R = TypeVar("R")
Actor = TypeVar("Actor", bound=type)


class Event(NamedTuple):
    """Something that took time in a thread; `kind` is one of the constants above, times are in ns of the wall clock."""

    name: str
    began: int
    lasted: int
    thread: int
    thread_name: str
    kind: str = CALL
    args: Mapping[str, float | str] = {}


class Clock(NamedTuple):
    """What a process's clock shows, and which machine's clock it is: processes with one `machine` share it."""

    now: int
    machine: str


@dataclass(frozen=True)
class Recording:
    """What a process recorded; `lost` events did not fit. `epoch`: the wall clock where the monotonic one was 0."""

    events: tuple[Event, ...]
    lost: int
    epoch: int
    process: int
    host: str


class Source(Protocol):
    """Somebody who notices events by itself while a recording lasts. Sources are known as long as something holds them."""

    def begin(self) -> None: ...

    def end(self) -> list[Event]: ...


class Recorder:
    """The spans of one process."""

    def __init__(self) -> None:
        self.on = False
        self.sources: weakref.WeakSet[Any] = weakref.WeakSet()  # of Source
        self._borrowed: list[Source] = []  # of this recording alone
        self._events: list[Event] = []
        self._lost = 0
        self._epoch = _epoch()

    def now(self) -> int:
        return self._epoch + time.perf_counter_ns()

    def start(self, *more: Source) -> None:
        """Forget what was recorded, and record; `more` are sources of this recording alone."""
        self._events, self._lost, self._epoch = [], 0, _epoch()
        self._borrowed = list(more)
        self.on = True
        for source in (*self.sources, *self._borrowed):
            source.begin()

    def add(self, name: str, began: int, kind: str, args: Mapping[str, float | str]) -> None:
        """Record an event of this thread that ends now."""
        if not self.on:
            return
        if len(self._events) >= MAX_EVENTS:
            self._lost += 1
            return
        thread = threading.current_thread()
        lasted = self.now() - began
        self._events.append(Event(name, began, lasted, threading.get_native_id(), thread.name, kind, args))

    def stop(self) -> Recording:
        """What was recorded since `start`."""
        self.on = False
        noticed = [event for source in (*self.sources, *self._borrowed) for event in source.end()]
        events, self._events, self._borrowed = [*self._events, *noticed], [], []
        lost = self._lost + max(0, len(events) - MAX_EVENTS)
        return Recording(tuple(events[:MAX_EVENTS]), lost, self._epoch, os.getpid(), socket.gethostname())


def _epoch() -> int:
    """The wall clock where the monotonic one is 0: of a few readings the one that was interrupted least."""
    readings = [(time.perf_counter_ns(), time.time_ns(), time.perf_counter_ns()) for _ in range(READINGS)]
    before, wall, after = min(readings, key=lambda reading: reading[2] - reading[0])
    return wall - (before + after) // 2


RECORDER = Recorder()


class _Span:
    """A span that is being recorded."""

    __slots__ = ("args", "began", "kind", "name")

    def __init__(self, name: str, kind: str, args: Mapping[str, float | str]) -> None:
        self.name, self.kind, self.args = name, kind, args

    def __enter__(self) -> None:
        self.began = RECORDER.now()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        RECORDER.add(self.name, self.began, self.kind, self.args)


_NOTHING = nullcontext()


def span(name: str, kind: str = CALL, **args: float | str) -> AbstractContextManager[None]:
    """Record what happens inside; does nothing while nobody records. `kind=WAIT`: waiting for somebody else's work."""
    return _Span(name, kind, args) if RECORDER.on else _NOTHING


def spanned(name: str, kind: str = CALL) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator: every call of the function is a span."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def inside(*args: P.args, **kwargs: P.kwargs) -> R:
            with span(name, kind):
                return function(*args, **kwargs)

        return inside

    return decorate


def traced(*methods: str) -> Callable[[Actor], Actor]:
    """Decorator of an actor's class: every call of these methods is a span of their name."""

    def decorate(actor: Actor) -> Actor:
        for name in methods:
            setattr(actor, name, spanned(name)(vars(actor)[name]))
        return actor

    return decorate


def start(torch: bool) -> None:
    """Record in this process from now on."""
    if torch:
        from rl.trace_torch import TorchEvents

        RECORDER.start(TorchEvents())
    else:
        RECORDER.start()


def stop() -> Recording:
    """What this process recorded since `start`."""
    return RECORDER.stop()


def clock() -> Clock:
    """This process's clock. Containers of a machine share its clock, and its boot id."""
    return Clock(time.time_ns(), Path("/proc/sys/kernel/random/boot_id").read_text().strip())
