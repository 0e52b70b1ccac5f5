"""Streaming rollout actors and their group: an engine has a thread of its own, and calls reach it between two steps."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Literal

import ray

from cluster.devices import see_own_devices_alone
from cluster.placement import Slot
from rl.actors.desk import Desk, Waiting
from rl.actors.rollout import RolloutActor, RolloutGroup
from rl.actors.samples import SampleShipper, fetch
from rl.protocols import GroupRequest, Published, SampledGroup
from rl.records import Rollout, RolloutFailure, Sampling, WeightsReceipt
from rl.sampler_config import Device, SamplerConfig

if TYPE_CHECKING:
    from rl.sync.seats import Seat


# A quarter more than its engine runs at once waits in an actor, so that no place is empty while the driver hears of it.
AHEAD = 4


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

    def sleep(self, keep_weights: bool) -> None:
        self.thread.call(super().sleep, keep_weights)

    def wake(self, part: Literal["weights", "kv_cache"]) -> None:
        self.thread.call(super().wake, part)

    def submit(self, tickets: Sequence[int], references: Sequence[ray.ObjectRef], sampling: Sequence[Sampling]) -> None:
        requests = [GroupRequest(*each) for each in zip(tickets, fetch(references), sampling, strict=True)]
        self.thread.post_all([partial(self.stream.submit, request) for request in requests])

    def collect(self) -> list[SampledGroup]:
        return self.thread.collect()

    def busy_seconds(self) -> float:
        return self.thread.busy_seconds


class StreamingRolloutGroup(RolloutGroup):
    """`rl.protocols.StreamingRollouts` over actors: a request goes to the one with the fewest answers under way.

    An actor takes as many as its engine runs at once and a few ahead; the rest wait here for whichever has room first. Where
    all fit, they are dealt in turn and at once, and a repeated run makes the same steps in every engine. Where they do not,
    which engine a prompt gets and beside which others depends on time: its tokens are still drawn by its own seed, from
    logits that may differ in their last bits.
    """

    actor_class = StreamingRolloutActor
    max_concurrency = 4  # `collect` waits in one thread while others submit, load and answer

    def __init__(
        self, slots: Sequence[Slot], config: SamplerConfig, device: Device, shipper: SampleShipper, timeout_s: float
    ) -> None:
        super().__init__(slots, config, device, shipper, timeout_s)
        ahead = -(-config.max_num_seqs // AHEAD)
        self._desk = Desk(len(slots), config.max_num_seqs + ahead)
        self._polls: dict[ray.ObjectRef, int] = {}
        self._sharing = threading.Lock()

    def submit(self, requests: Sequence[GroupRequest]) -> None:
        references = self.shipper.references([request.sample for request in requests])
        with self._sharing:
            dealt = self._desk.take_on(list(zip(requests, references, strict=True)))
        self._send(dealt)

    def _send(self, dealt: Mapping[int, Sequence[Waiting]]) -> None:
        waiting = {}
        for rank, share in dealt.items():
            tickets, sampling = [request.ticket for request, _ in share], [request.sampling for request, _ in share]
            references = [reference for _, reference in share]
            waiting[self.group.submit_to(rank, "submit", tickets, references, sampling)] = rank
        while waiting:
            for reference in self.group.first_done("submit", waiting, None):
                del waiting[reference]

    def collect(self, timeout_s: float) -> list[SampledGroup]:
        with self._sharing:
            waiting = self._desk.busy - set(self._polls.values())
        for rank in waiting:
            self._polls[self.group.submit_to(rank, "collect")] = rank
        ended: list[SampledGroup] = []
        for reference, groups in self.group.first_done("collect", self._polls, timeout_s).items():
            rank = self._polls.pop(reference)
            ended += [replace(group, sampler=rank) for group in groups]
        with self._sharing:
            dealt = self._desk.settle([group.ticket for group in ended])
        self._send(dealt)
        return ended

    def sleep(self, keep_weights: bool) -> None:
        assert not self._desk.busy, "groups are under way"
        super().sleep(keep_weights)

    def busy_seconds(self) -> float:
        return fmean(self.group.call_all("busy_seconds"))
