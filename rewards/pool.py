"""RewardPool: runs a reward in child processes that can be killed, so that a hung call costs its timeout and nothing more.

    score(pairs) ── a contiguous share each ──► worker 0 ─┐
                                            ──► worker 1 ─┴─► verdicts in the order of the pairs

A thread cannot be stopped and `signal.alarm` works on a main thread only, so calls run in a process of their own
(rewards.child) and the pool keeps the clock. A call past its time, or one that takes its process down, becomes a
RewardFailure; the process is replaced and goes on with the next pair. Children start at the first batch and die with
the pool's process, however that ends.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from multiprocessing.connection import wait
from types import TracebackType
from typing import Self

from rewards.config import RewardConfig
from rewards.registry import resolve
from rewards.score import RewardFailure, Score
from rewards.worker import Pair, RewardWorker


class RewardPool:
    """Scores completions in `config.workers` child processes. Not thread-safe: one batch at a time.

    >>> with RewardPool(RewardConfig(name="locus", timeout_s=10.0, workers=2)) as pool:
    ...     verdicts = pool.score([(sample, completion), …])

    Raises RewardLookupError at once when the config's reward cannot be found or called.
    """

    def __init__(self, config: RewardConfig) -> None:
        config.validate()
        resolve(config.name, config.kwargs)
        self._config = config
        self._workers: list[RewardWorker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def pids(self) -> list[int]:
        """The process ids of the children that run now."""
        return [worker.pid for worker in self._workers]

    def close(self) -> None:
        """End every child. The pool starts new ones if it is used again."""
        while self._workers:
            self._workers.pop().kill()

    def score(self, pairs: Sequence[Pair]) -> list[Score | RewardFailure]:
        """A verdict for every pair, in order. A sample that several pairs share crosses to a worker once."""
        try:
            while len(self._workers) < self._config.workers:
                self._workers.append(RewardWorker(self._config))
            return self._score(pairs)
        except BaseException:
            # Stopped half way (Ctrl-C, a lookup error): verdicts of this batch must not answer the next one.
            self.close()
            raise

    def _score(self, pairs: Sequence[Pair]) -> list[Score | RewardFailure]:
        verdicts: dict[RewardWorker, list[Score | RewardFailure]] = {worker: [] for worker in self._workers}
        bounds = [len(pairs) * index // len(self._workers) for index in range(len(self._workers) + 1)]
        for worker, start, stop in zip(self._workers, bounds[:-1], bounds[1:], strict=True):
            if stop > start:
                worker.assign(pairs[start:stop])
        while busy := [worker for worker in self._workers if worker.busy]:
            nearest = min(worker.deadline for worker in busy)
            arrived = wait([worker.channel for worker in busy], timeout=max(0.0, nearest - time.monotonic()))
            for worker in busy:
                if worker.channel in arrived:
                    verdicts[worker] += worker.receive()
                # A verdict may have come while another worker was being served: look once more before cutting.
                elif worker.deadline <= time.monotonic() and not worker.channel.poll():
                    verdicts[worker].append(worker.cut())
        return [verdict for worker in self._workers for verdict in verdicts[worker]]
