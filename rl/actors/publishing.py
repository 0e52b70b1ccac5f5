"""Weights from the ranks of a learner to the samplers: what the driver does (Publisher), and a rank (PublishingRank).

Publisher.begin(v) ─► every rank: publish(v), which gathers part after part; ranks that feed samplers send them
                 └──► Published(v): what the samplers iterate over                         … while they receive
Publisher.confirm ◄── the checksum of what was sent
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ray

from cluster.group import ActorGroup
from rl.config import ModelConfig, SyncConfig
from rl.protocols import Published

if TYPE_CHECKING:
    from rl.learner import Learner
    from rl.sync.line import Address
    from rl.sync.receiver import Way
    from rl.sync.seats import Seat
    from rl.sync.sender import Sender

# Who receives a part of a publication: all workers of all samplers, or their engines alone, which write adapters to a file.
POPULATIONS = {"full": "workers", "base": "workers", "adapter": "engines"}


class PublishingRank:
    """What a learner's rank does for publications; lives in its process."""

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        self._senders: dict[str, Sender] = {}
        self._streams = {
            "full": learner.full_weights,
            "base": learner.base_weights,
            "adapter": learner.adapter_weights,
        }

    def seat(self) -> Seat:
        from rl.sync.seats import Seat

        return Seat.here(self.learner.engine.device)

    def open_sender(self, population: str, medium: str, receivers: int, config: SyncConfig) -> Address | None:
        """Where `receivers` samplers can ask for weights from now on; None from a rank that feeds nobody."""
        from rl.sync.sender import Sender

        if not receivers:
            return None
        host = ray.util.get_node_ip_address()
        self._senders[population] = Sender(medium, host, receivers, config.bucket_mb << 20, config.timeout_s)
        return self._senders[population].address

    def publish(self, version: int, parts: Sequence[str]) -> str | None:
        """Send the parts one after another: the checksum of what this rank sent, None if it feeds nobody. Collective.

        A step's last act. Every rank gathers every part, also when it could not send one: the others would wait for it.
        """
        from rl.sync.line import TransportError
        from rl.sync.sender import exhausted
        from rl.weights import added

        self.learner.end_step()
        sums: list[str] = []
        failure: TransportError | None = None
        for part in parts:
            tensors, sender = self._streams[part](), self._senders.get(POPULATIONS[part])
            if sender is None or failure is not None:
                exhausted(tensors)
                continue
            try:
                sums.append(sender.send(version, tensors))
            except TransportError as error:
                failure = error
        if failure is not None:
            raise failure
        return added(sums) if sums else None


class Publisher:
    """The driver's side: which parts a publication has, and the ways they take to samplers at the given seats."""

    def __init__(
        self, group: ActorGroup, model: ModelConfig, config: SyncConfig, samplers: Sequence[Sequence[Seat]]
    ) -> None:
        """`samplers`: by actor, where its engine's workers are. Raises RouteError when no way leads there."""
        self.group = group
        self._sending: list[ray.ObjectRef[Any]] = []
        self._adapter: dict[str, Any] | None = None
        self._base_sent = True
        seats = {"workers": [seat for workers in samplers for seat in workers]}
        if model.lora.rank and model.lora.sync == "adapter":
            self._adapter = group.call_all("adapter_config")[0]
            self._base_sent = not model.quantization
            seats["engines"] = [workers[0] for workers in samplers]
        learner: list[Seat] = group.call_all("seat")
        self._ways = {population: self._way(population, config, learner, found) for population, found in seats.items()}

    def _way(self, population: str, config: SyncConfig, learner: Sequence[Seat], samplers: Sequence[Seat]) -> Way:
        from rl.sync.receiver import Feed, Way
        from rl.sync.seats import adapter_route, route

        found = (adapter_route if population == "engines" else route)(config.transport, learner, samplers)
        opening = [(population, found.medium, receivers, config) for receivers in found.audiences]
        addresses: list[Address | None] = self.group.call_each("open_sender", opening)
        feeds = (Feed(seat, address) for seat, address in zip(learner, addresses, strict=True) if address is not None)
        return Way(found.medium, tuple(feeds), config.timeout_s)

    def begin(self, version: int) -> Published:
        """Have all ranks send `version`, and return. Samplers whose own folder is not the adapter's base get that first."""
        parts = ["full" if self._adapter is None else "adapter"]
        if not self._base_sent:
            parts.insert(0, "base")
            self._base_sent = True
        self._sending = self.group.submit_all("publish", version, parts)
        *base, last = [Published(version, self._ways[POPULATIONS[part]].arrival(version)) for part in parts]
        return replace(last, adapter=self._adapter, base=base[0] if base else None)

    def confirm(self, published: Published) -> str:
        """Wait for the ranks; the checksum of what they sent. Raises ActorError."""
        sums: set[str] = {checksum for checksum in self.group.collect("publish", self._sending) if checksum is not None}
        if len(sums) != 1:
            raise ValueError(f"the learner's ranks hold different weights of version {published.version}: {sorted(sums)}")
        return sums.pop()
