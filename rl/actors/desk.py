"""Who gets which request, and when: requests wait at the desk until a sampler has room. Knows no Ray.

take_on ─► waiting ─► the sampler with the fewest answers under way, if it has room ─► settle ─► room for the next
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from rl.protocols import GroupRequest

# A request, and what its sampler gets for the sample.
Waiting = tuple[GroupRequest, Any]


class Desk:
    """`room`: how many answers a sampler takes at a time; it always takes one request. A lone sampler takes all."""

    def __init__(self, samplers: int, room: int) -> None:
        self.room = room
        self._waiting: deque[Waiting] = deque()
        self._under_way: dict[int, tuple[int, int]] = {}  # ticket: its sampler, its answers
        self._load = [0] * samplers  # answers under way

    @property
    def busy(self) -> set[int]:
        """The samplers with requests under way."""
        return {sampler for sampler, load in enumerate(self._load) if load}

    def take_on(self, requests: Iterable[Waiting]) -> dict[int, list[Waiting]]:
        """What each sampler is to be sent now; the others wait."""
        self._waiting.extend(requests)
        return self._deal()

    def settle(self, tickets: Sequence[int]) -> dict[int, list[Waiting]]:
        """The requests with these tickets are answered: what each sampler is to be sent now."""
        for ticket in tickets:
            sampler, answers = self._under_way.pop(ticket)
            self._load[sampler] -= answers
        return self._deal()

    def _deal(self) -> dict[int, list[Waiting]]:
        dealt: dict[int, list[Waiting]] = {}
        while self._waiting:
            request, sample = self._waiting[0]
            answers = request.sampling.n
            sampler = min(range(len(self._load)), key=self._load.__getitem__)
            load = self._load[sampler]
            if load and load + answers > self.room and len(self._load) > 1:
                break
            self._waiting.popleft()
            self._load[sampler] += answers
            self._under_way[request.ticket] = sampler, answers
            dealt.setdefault(sampler, []).append((request, sample))
        return dealt
