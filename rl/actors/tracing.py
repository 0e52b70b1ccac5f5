"""Tracing: recordings of the driver and of every actor, begun and ended together, on the driver's clock."""

from __future__ import annotations

import math
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
        own = trace.stop()
        lanes = [_lane("driver", own, 0)]
        for group in self.groups():
            ahead = clocks_ahead(group)
            recordings: list[Recording] = group.run_all(trace.stop)
            for rank, (recording, clock) in enumerate(zip(recordings, ahead, strict=True)):
                # On this machine the monotonic clock is the same, so that only the readings of the wall clock differ.
                offset = recording.epoch - own.epoch if clock is None else clock
                lanes.append(_lane(f"{group.role}-{rank}", recording, offset))
        return lanes


def _lane(name: str, recording: Recording, ahead: int) -> Lane:
    events = tuple(event._replace(began=event.began - ahead) for event in recording.events)
    return Lane(name, recording.host, recording.process, events, recording.lost)


def clocks_ahead(group: ActorGroup) -> list[int | None]:
    """Nanoseconds by which every rank's clock is ahead of this process's; None for ranks on this machine, whose clock it is.

    Of several pings the shortest counts: the actor read its clock half way through it, give or take half of what it took.
    """
    here = trace.clock().machine
    shortest = math.inf
    ahead: list[int | None] = []
    for _ in range(PINGS):
        asked = time.time_ns()
        clocks: list[Clock] = group.run_all(trace.clock)
        answered = time.time_ns()
        if answered - asked < shortest:
            shortest = answered - asked
            ahead = [None if clock.machine == here else clock.now - (asked + answered) // 2 for clock in clocks]
        if all(clock.machine == here for clock in clocks):
            break
    return ahead
