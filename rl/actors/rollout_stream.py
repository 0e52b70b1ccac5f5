"""Streaming rollout actors and their group: an engine has a thread of its own, and calls reach it between two steps."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

import ray

from cluster.devices import see_own_devices_alone
from cluster.placement import Slot
from rl.actors.rollout import RolloutActor, RolloutGroup
from rl.actors.samples import SampleShipper, fetch
from rl.protocols import GroupRequest, Published, SampledGroup
from rl.records import Rollout, RolloutFailure, Sampling, WeightsReceipt
from rl.sampler_config import Device, SamplerConfig

if TYPE_CHECKING:
    from rl.sync.seats import Seat


class StreamingRolloutActor(RolloutActor):
    """A RolloutActor whose engine steps by itself. Its methods run side by side; the engine does one thing at a time."""

    def build(self, config: SamplerConfig) -> None:
        see_own_devices_alone()
        from rl.engine_thread import EngineThread
        from rl.sampler_stream import StreamingSampler

        self.thread = EngineThread()
        self.stream = self.thread.call(StreamingSampler, config)
        self.sampler = self.stream
        self.thread.drive(self.stream)

    def generate(self, references: Sequence[ray.ObjectRef], sampling: Sampling) -> list[list[Rollout | RolloutFailure]]:
        return self.thread.call(super().generate, references, sampling)

    def load(self, published: Published) -> WeightsReceipt:
        return self.thread.call(super().load, published)

    def seats(self) -> list[Seat]:
        return self.thread.call(super().seats)

    def submit(self, tickets: Sequence[int], references: Sequence[ray.ObjectRef], sampling: Sequence[Sampling]) -> None:
        for each in zip(tickets, fetch(references), sampling, strict=True):
            self.thread.post(self.stream.submit, GroupRequest(*each))

    def collect(self) -> list[SampledGroup]:
        return self.thread.collect()

    def busy_seconds(self) -> float:
        return self.thread.busy_seconds


class StreamingRolloutGroup(RolloutGroup):
    """`rl.protocols.StreamingRollouts` over actors: a request goes to the one with the fewest under way."""

    actor_class = StreamingRolloutActor
    max_concurrency = 4  # `collect` waits in one thread while others submit, load and answer

    def __init__(
        self, slots: Sequence[Slot], config: SamplerConfig, device: Device, shipper: SampleShipper, timeout_s: float
    ) -> None:
        super().__init__(slots, config, device, shipper, timeout_s)
        self._rank_of: dict[int, int] = {}  # by ticket, while it is under way
        self._polls: dict[ray.ObjectRef, int] = {}
        self._sharing = threading.Lock()

    def submit(self, requests: Sequence[GroupRequest]) -> None:
        dealt: list[list[GroupRequest]] = [[] for _ in range(len(self.group))]
        with self._sharing:
            load = Counter(self._rank_of.values())
            for request in requests:
                rank = min(range(len(dealt)), key=lambda rank: load[rank])
                load[rank] += 1
                self._rank_of[request.ticket] = rank
                dealt[rank].append(request)
        shares = [
            (
                [request.ticket for request in share],
                self.shipper.references([request.sample for request in share]),
                [request.sampling for request in share],
            )
            for share in dealt
        ]
        self.group.call_each("submit", shares)

    def collect(self, timeout_s: float) -> list[SampledGroup]:
        with self._sharing:
            waiting = set(self._rank_of.values()) - set(self._polls.values())
        for rank in waiting:
            self._polls[self.group.submit_to(rank, "collect")] = rank
        ended: list[SampledGroup] = []
        for reference, groups in self.group.first_done("collect", self._polls, timeout_s).items():
            del self._polls[reference]
            ended += groups
        with self._sharing:
            for group in ended:
                del self._rank_of[group.ticket]
        return ended

    def busy_seconds(self) -> float:
        return fmean(self.group.call_all("busy_seconds"))
