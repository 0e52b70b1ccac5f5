"""Reads the samples that will be asked for next on a thread of its own, while the program does something else.

    read([4, 1]) ─► begin([7, 0]) ─┐ … the step …                 read([7, 0]) ─► they are there, or soon are
                                   └─► thread: samples[7], samples[0]

What is read ahead changes nothing but the time: who asks for others than were begun gets those. An error of the thread is
raised where its sample is asked for. The thread starts when there is something to read, and ends with its owner, after the
one sample it may be at, or with the program, whatever it is at.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future

from data.background import BackgroundThread
from data.sample import Sample


class ReadAhead:
    """Over `samples`, which two threads may read at a time; holds no more of them than the largest `begin` named."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples
        self._coming: deque[tuple[int, Future[Sample]]] = deque()
        self._thread = BackgroundThread("samples")
        weakref.finalize(self, _give_up, self._coming)

    def begin(self, indices: Sequence[int]) -> None:
        """Have these samples read next. Those begun before stay if they are the first of these, and are given up if not."""
        if isinstance(self.samples, list | tuple):
            return  # they are in memory: nothing is gained
        begun = [index for index, _ in self._coming]
        if begun[: len(indices)] != list(indices[: len(begun)]):
            self.forget()
            begun = []
        for index in indices[len(begun) :]:
            self._coming.append((index, self._thread.submit(self.samples.__getitem__, index)))

    def read(self, indices: Sequence[int]) -> list[Sample]:
        """The samples at `indices`. Raises what reading one of them raises."""
        return [self._read(index) for index in indices]

    def _read(self, index: int) -> Sample:
        if self._coming and self._coming[0][0] == index:
            return self._coming.popleft()[1].result()
        self.forget()
        return self.samples[index]

    def forget(self) -> None:
        """Give up what was begun."""
        _give_up(self._coming)


def _give_up(coming: deque[tuple[int, Future[Sample]]]) -> None:
    while coming:
        coming.popleft()[1].cancel()
