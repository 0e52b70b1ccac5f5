"""A learner rank's part in a publication: which parts go to whom, and that every part is gathered, whatever became of it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import Tensor

from rl.actors.publishing import PublishingRank
from rl.config import SyncConfig
from rl.learner import Learner
from rl.sync.line import TransportError
from rl.sync.receiver import Arrival, Feed
from rl.sync.seats import Seat
from rl.weights import added, checksum
from tests.rl.sync_case import TIMEOUT_S

CPU = torch.device("cpu")
SYNC = SyncConfig(bucket_mb=1, timeout_s=TIMEOUT_S)


class Streams:
    """A learner's three streams of tensors, and which were gathered to their end."""

    def __init__(self) -> None:
        self.engine = SimpleNamespace(device=CPU)
        self.gathered: list[str] = []

    def tensors(self, part: str) -> list[tuple[str, Tensor]]:
        return [(f"{part}.{number}", torch.full((400_000,), float(number))) for number in range(5)]

    def _stream(self, part: str) -> Iterator[tuple[str, Tensor]]:
        yield from self.tensors(part)
        self.gathered.append(part)

    def end_step(self) -> None:
        pass

    def full_weights(self) -> Iterator[tuple[str, Tensor]]:
        return self._stream("full")

    def base_weights(self) -> Iterator[tuple[str, Tensor]]:
        return self._stream("base")

    def adapter_weights(self) -> Iterator[tuple[str, Tensor]]:
        return self._stream("adapter")


@pytest.fixture
def streams() -> Streams:
    return Streams()


@pytest.fixture
def rank(streams: Streams, monkeypatch: pytest.MonkeyPatch) -> PublishingRank:
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "127.0.0.1")
    return PublishingRank(cast(Learner, streams))


def arrival_at(rank: PublishingRank, population: str, version: int = 1) -> Arrival:
    address = rank.open_sender(population, "shared_memory", 1, SYNC)
    assert address is not None
    return Arrival("shared_memory", (Feed(Seat.here(CPU), address),), TIMEOUT_S, version)


def test_a_base_and_its_adapter_go_to_their_populations(rank: PublishingRank, streams: Streams) -> None:
    workers, engines = arrival_at(rank, "workers"), arrival_at(rank, "engines")
    with ThreadPoolExecutor(1) as thread:
        sent = thread.submit(rank.publish, 1, ["base", "adapter"])
        received = [checksum(workers), checksum(engines)]
        assert sent.result() == added(received)
    assert received == [checksum(streams.tensors("base")), checksum(streams.tensors("adapter"))]


def test_a_rank_that_feeds_nobody_gathers_along(rank: PublishingRank, streams: Streams) -> None:
    assert rank.open_sender("workers", "gloo", 0, SYNC) is None
    assert rank.publish(1, ["full"]) is None
    assert streams.gathered == ["full"]


def test_every_part_is_gathered_also_after_a_failure(rank: PublishingRank, streams: Streams) -> None:
    """Other ranks take part in the gathering: they would wait for ever."""
    workers = arrival_at(rank, "workers")
    arrival_at(rank, "engines")
    with ThreadPoolExecutor(1) as thread:
        sent = thread.submit(rank.publish, 1, ["base", "adapter"])
        stream = iter(workers)
        next(stream)
        stream.close()  # type: ignore[attr-defined]
        with pytest.raises(TransportError, match=r"stopped reading; the last tensor was base\.0"):
            sent.result()
    assert streams.gathered == ["base", "adapter"]


def test_a_medium_that_fails_keeps_no_part_from_being_gathered(
    rank: PublishingRank, streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    def torn(outlet: object, slot: int, nbytes: int) -> None:
        raise RuntimeError("the cable tore")

    monkeypatch.setattr("rl.sync.shared_memory._Outlet.send", torn)
    workers = arrival_at(rank, "workers")
    arrival_at(rank, "engines")
    with ThreadPoolExecutor(1) as thread:
        sent = thread.submit(rank.publish, 1, ["base", "adapter"])
        with pytest.raises(TransportError, match=r"failed: .*the cable tore"):
            checksum(workers)
        with pytest.raises(TransportError, match="medium shared_memory failed: RuntimeError: the cable tore"):
            sent.result()
    assert streams.gathered == ["base", "adapter"]
