"""Tracing: recordings of the driver and of every actor, begun and ended together, on the driver's clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cluster.group import ActorGroup
from rl import trace
from rl.trace import Clock, Recording
from rl.trace_file import Lane

PINGS = 5


@dataclass(frozen=True)
class Tracing:
    """Records in this process, and in the actors of `groups()`: those that are there when it starts."""

    groups: Callable[[], Sequence[ActorGroup]]

    def start(self, torch: bool) -> None:
        """Have everybody record; the driver last, so that what it waits for lies in its spans."""
        for group in self.groups():
            group.run_all(trace.start, torch)
        trace.start(torch)

    def stop(self) -> list[Lane]:
        """What everybody recorded: the driver's lane, then one an actor, in the order of `groups()`."""
        lanes = [_lane("driver", trace.stop(), 0)]
        for group in self.groups():
            ahead = clocks_ahead(group)
            recordings: list[Recording] = group.run_all(trace.stop)
            for rank, (recording, offset) in enumerate(zip(recordings, ahead, strict=True)):
                lanes.append(_lane(f"{group.role}-{rank}", recording, offset))
        return lanes


def _lane(name: str, recording: Recording, ahead: int) -> Lane:
    events = tuple(event._replace(began=event.began - ahead) for event in recording.events)
    return Lane(name, recording.host, recording.process, events, recording.lost)


def clocks_ahead(group: ActorGroup) -> list[int]:
    """Nanoseconds by which every rank's clock is ahead of this process's; 0 for ranks on this machine, whose clock it is.

    Of several pings the shortest counts: the actor read its clock half way through it, give or take half of what it took.
    """
    here = trace.clock().machine
    best: dict[int, tuple[int, int]] = {}
    for _ in range(PINGS):
        asked = time.time_ns()
        clocks: list[Clock] = group.run_all(trace.clock)
        answered = time.time_ns()
        for rank, clock in enumerate(clocks):
            ahead = 0 if clock.machine == here else clock.now - (asked + answered) // 2
            best[rank] = min(best.get(rank, (answered - asked, ahead)), (answered - asked, ahead))
        if all(clock.machine == here for clock in clocks):
            break
    return [best[rank][1] for rank in range(len(group))]
