"""Groups between samplers and learner: submitted by the loop, judged in the background, taken oldest first.

    loop: submit ─► samplers ─► collect ─► judge ─► ready ─► loop: take
                    └────────── one thread ─────────┘

What fails in the background is raised where the loop takes its groups.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from data.sample import Sample
from rl.batch import Group
from rl.protocols import GroupRequest, SampledGroup, StreamingRollouts
from rl.records import Rollout, RolloutFailure, Sampling

POLL_S = 0.2

Judge = Callable[[Sequence[Sample], Sequence[Sequence[Rollout | RolloutFailure]]], list[Group]]


@dataclass(frozen=True)
class Submitted:
    """A group under way: none of its tokens is older than `version`."""

    ticket: int
    sample: Sample
    version: int


@dataclass(frozen=True)
class Ready:
    """A judged group, as `judge` made it."""

    ticket: int
    version: int
    group: Group


class GroupStream:
    """See the picture above. `judge` is called in the background, with any number of groups that ended."""

    def __init__(self, rollouts: StreamingRollouts, judge: Judge) -> None:
        self.rollouts, self.judge = rollouts, judge
        self.judging_s = 0.0
        self._under_way: dict[int, Submitted] = {}
        self._ready: dict[int, Ready] = {}
        self._error: BaseException | None = None
        self._started = self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="groups", daemon=True)

    @property
    def outstanding(self) -> int:
        """Groups submitted and not yet taken."""
        with self._changed:
            return len(self._under_way) + len(self._ready)

    def submit(self, tickets: Sequence[int], samples: Sequence[Sample], sampling: Sequence[Sampling], version: int) -> None:
        """Have groups sampled by the samplers, which hold `version` or will hold a later one."""
        requests = [GroupRequest(*each) for each in zip(tickets, samples, sampling, strict=True)]
        with self._changed:
            self._under_way |= {each.ticket: Submitted(each.ticket, each.sample, version) for each in requests}
            self._changed.notify_all()
        self.rollouts.submit(requests)
        if not self._started:
            self._thread.start()
            self._started = True

    def take(self, count: int, may_leave: Callable[[Sequence[int]], bool]) -> list[Ready]:
        """The `count` oldest of the ready groups, as soon as there are so many and the versions of all others may be left.

        Raises what went wrong in the background.
        """
        assert count <= self.outstanding, "more groups wanted than are on their way"
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None or self._choice(count, may_leave) is not None)
            chosen = self._choice(count, may_leave)
            if chosen is None:
                assert self._error is not None
                raise self._error
            for ready in chosen:
                del self._ready[ready.ticket]
            return chosen

    def _choice(self, count: int, may_leave: Callable[[Sequence[int]], bool]) -> list[Ready] | None:
        oldest_first = [self._ready[ticket] for ticket in sorted(self._ready)]
        chosen, others = oldest_first[:count], oldest_first[count:]
        left = [*(ready.version for ready in others), *(group.version for group in self._under_way.values())]
        return chosen if len(chosen) == count and may_leave(left) else None

    def close(self) -> None:
        """End the background thread; what is under way stays with the samplers."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._started:
            self._thread.join(timeout=10.0)  # a reward may take long; the thread is a daemon and dies with the program

    def _work(self) -> None:
        try:
            while self._waits_for_work():
                ended = self.rollouts.collect(POLL_S)
                if ended:
                    self._judge(ended)
        except BaseException as error:  # the loop's to raise, in its own thread
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _waits_for_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._under_way or self._closed)
            return not self._closed

    def _judge(self, ended: Sequence[SampledGroup]) -> None:
        began = time.perf_counter()
        submitted = [self._under_way[group.ticket] for group in ended]
        judged = self.judge([each.sample for each in submitted], [group.answers for group in ended])
        self.judging_s += time.perf_counter() - began
        with self._changed:
            for each, group in zip(submitted, judged, strict=True):
                del self._under_way[each.ticket]
                self._ready[each.ticket] = Ready(each.ticket, each.version, group)
            self._changed.notify_all()
