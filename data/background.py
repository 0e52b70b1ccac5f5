"""A thread that works through what it is given and never holds up the end of the program, unlike a pool of the library's."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class BackgroundThread:
    """One daemon thread, started with the first task. It ends when this object is let go, after what it was given."""

    def __init__(self, name: str) -> None:
        self._tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._name = name
        self._thread: threading.Thread | None = None
        weakref.finalize(self, self._tasks.put, None)

    def submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """`function(…)` after what was given before; its result or error, unless it is cancelled before its turn."""
        future: Future[T] = Future()

        def task() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function(*args, **kwargs))
            except BaseException as error:  # whoever waits for the result is told
                future.set_exception(error)

        if self._thread is None:
            self._thread = threading.Thread(target=_work, args=(self._tasks,), name=self._name, daemon=True)
            self._thread.start()
        self._tasks.put(task)
        return future

    def close(self, timeout_s: float) -> None:
        """End after what it was given, and wait for that so long; what goes on longer dies with the program."""
        self._tasks.put(None)
        if self._thread is not None:
            self._thread.join(timeout_s)


def _work(tasks: SimpleQueue[Callable[[], None] | None]) -> None:
    while (task := tasks.get()) is not None:
        task()
        del task  # nothing it held is kept while the next one is waited for
