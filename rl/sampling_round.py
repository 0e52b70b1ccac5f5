"""A round of a synchronous step: a group is judged as soon as it is complete, while others are still sampled.

    samples ─► samplers ─► complete groups ─► judge, in a thread of its own ─► done (begin the reference on it, say)
                  └─── go on with the others, and with what waited for room ───┘

Samplers that do not stream answer all at once, and then nothing overlaps; the groups are the same.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from data.background import BackgroundThread
from data.sample import Sample
from rl.batch import Group
from rl.clock import PhaseClock
from rl.group_stream import POLL_S, Judge
from rl.protocols import CountingRollouts, GroupRequest, Rollouts, SampledGroup, StreamingRollouts
from rl.records import Sampling
from rl.sampler_counts import SamplerCounts

Ended = Iterator[list[SampledGroup]]


@dataclass
class RoundTotals:
    """Of a step's rounds. `slowest_wait_s` and `counts` are None where the samplers do not stream, or do not count.

    `slowest_wait_s` is from the moment at which half of a round's groups (rounded up) were complete to that at which the
    last one was; with dynamic sampling the sum over the step's rounds.
    """

    judging_s: float = 0.0
    slowest_wait_s: float | None = None
    counts: SamplerCounts | None = None

    @property
    def metrics(self) -> dict[str, float]:
        waits = {} if self.slowest_wait_s is None else {"throughput/slowest_wait_s": self.slowest_wait_s}
        return waits if self.counts is None else waits | self.counts.cache_hits


class SamplingRounds:
    """Rounds over `rollouts`. `judge` runs in a thread that lives as long as this object: rewards may keep processes."""

    def __init__(self, rollouts: Rollouts, clock: PhaseClock) -> None:
        self.rollouts, self.clock = rollouts, clock
        self.totals = RoundTotals()
        self._judging = BackgroundThread("judge")

    def lap(self) -> RoundTotals:
        """The totals since the last lap."""
        totals, self.totals = self.totals, RoundTotals()
        return totals

    def run(
        self, samples: Sequence[Sample], sampling: Sampling, judge: Judge, done: Callable[[int, Group], None]
    ) -> list[Group]:
        """The judged groups in the samples' order. `done(sampler, group)` hears of each as it is judged.

        A sampler's groups are judged, and `done` hears of them, in the order in which it ended them.
        """
        counted = self.counts()
        groups: dict[int, Group] = {}
        pending: deque[tuple[list[SampledGroup], Future[list[Group]]]] = deque()

        def settle(ended: Sequence[SampledGroup], judged: Future[list[Group]]) -> None:
            for each, group in zip(ended, judged.result(), strict=True):
                groups[each.ticket] = group
                done(each.sampler, group)

        with self.clock.phase("rollout"):
            for ended in self._sampled(samples, sampling):
                if ended:
                    pending.append((ended, self._judging.submit(self._judge, judge, samples, ended)))
                while pending and pending[0][1].done():
                    settle(*pending.popleft())
        with self.clock.phase("reward"):
            while pending:
                settle(*pending.popleft())
        self.count_since(counted)
        return [groups[place] for place in range(len(samples))]

    def _sampled(self, samples: Sequence[Sample], sampling: Sampling) -> Ended:
        """The round's groups as they end; a ticket is the place of its sample."""
        rollouts = self.rollouts
        if not isinstance(rollouts, StreamingRollouts):
            answers = rollouts.generate(samples, sampling)
            yield [SampledGroup(place, tuple(group)) for place, group in enumerate(answers)]
            return
        rollouts.submit([GroupRequest(place, sample, sampling) for place, sample in enumerate(samples)])
        arrivals: list[float] = []
        while len(arrivals) < len(samples):
            ended = rollouts.collect(POLL_S)
            arrivals += [time.perf_counter()] * len(ended)
            yield ended
        half = arrivals[(len(arrivals) - 1) // 2]
        self.totals.slowest_wait_s = (self.totals.slowest_wait_s or 0.0) + arrivals[-1] - half

    def _judge(self, judge: Judge, samples: Sequence[Sample], ended: Sequence[SampledGroup]) -> list[Group]:
        began = time.perf_counter()
        judged = judge([samples[group.ticket] for group in ended], [group.answers for group in ended])
        self.totals.judging_s += time.perf_counter() - began
        return judged

    def counts(self) -> SamplerCounts | None:
        """The samplers' totals so far."""
        return self.rollouts.counts() if isinstance(self.rollouts, CountingRollouts) else None

    def count_since(self, before: SamplerCounts | None) -> None:
        """What the samplers have done since they answered `before` belongs to this lap."""
        now = self.counts()
        if before is not None and now is not None:
            self.totals.counts = (self.totals.counts or SamplerCounts()) + (now - before)

    def close(self) -> None:
        self._judging.close(timeout_s=10.0)  # a reward may take long; the thread dies with the program
