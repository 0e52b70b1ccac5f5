"""Maps a function over items in worker processes: results in the order of the items, and only a few of them in memory."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from types import TracebackType
from typing import Self, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

# Results wait for their turn; this many a worker keep everyone busy without piling up.
_AHEAD_PER_WORKER = 3


def available_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0))


class WorkerPool:
    """`workers` processes; with one, the work is done in this process and no other is started.

    On an exception, Ctrl-C included, the work that has not begun is dropped and the processes end.
    """

    def __init__(self, workers: int) -> None:
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        self.workers = workers
        self._executor: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        if self.workers > 1:
            # spawn: a fork would copy the locks of this process's threads (progress bar, Arrow), held or not.
            context = get_context("spawn")
            self._executor = ProcessPoolExecutor(self.workers, mp_context=context, initializer=_ignore_interrupt)
            # A process starts when it has work: give it some now, so that imports are over when the real work comes.
            for _ in range(self.workers):
                self._executor.submit(os.getpid)
        return self

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Results in order; at most a few items a worker are taken ahead of the result that is asked for.

        Raises ChildProcessError when a process dies; what `function` raises comes out as it is.
        """
        if self._executor is None:
            yield from map(function, items)
            return
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(self._executor.submit(function, item))
                if len(waiting) > _AHEAD_PER_WORKER * self.workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise ChildProcessError("a worker process was killed (out of memory?); try fewer --workers") from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=kind is not None)


def _ignore_interrupt() -> None:
    """Ctrl-C reaches every process of the terminal; only the parent answers it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
