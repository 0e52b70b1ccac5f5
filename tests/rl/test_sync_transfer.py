"""Weights from one process to others, through every medium that works without GPUs: whole, bounded, never stuck."""

from __future__ import annotations

import fcntl
import resource
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest
import ray
from torch import Tensor

from cluster.config import ClusterConfig
from cluster.group import ActorGroup
from cluster.placement import Placement, RoleSpec, place
from cluster.session import ray_session
from rl.sync.line import Line, LostError, TransportError, dial, next_messages
from rl.sync.receiver import Receiver
from rl.sync.sender import Sender
from rl.weights import checksum
from tests.rl.sync_case import KIB, MIB, TIMEOUT_S, Reader, assorted, large, peak_memory, way_of

MEDIA = ("shared_memory", "gloo", "object_store")
BUCKET = 64 * KIB
STORE_MIB = 80


@pytest.fixture(scope="module")
def placement() -> Iterator[Placement]:
    with ray_session(ClusterConfig(address="local", local_cpus=4, local_object_store_mb=STORE_MIB)):
        placement = place([RoleSpec("reader", 3)], timeout_s=60)
        yield placement
        placement.shutdown()


@pytest.fixture(scope="module")
def readers(placement: Placement) -> Iterator[ActorGroup]:
    """Two processes that outlive every transfer but those of their own death."""
    group = ActorGroup.start("reader", Reader, placement["reader"][:2], timeout_s=120)
    yield group
    group.shutdown()


@pytest.fixture(params=MEDIA)
def medium(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def sender(medium: str, readers: ActorGroup) -> Iterator[Sender]:
    with closing(Sender(medium, "127.0.0.1", 2, BUCKET, TIMEOUT_S)) as sender:
        yield sender


class Counted:
    """Tensors, and how many of them were asked for; `torn` raises in the place of one."""

    def __init__(self, torn: int | None = None) -> None:
        self.tensors, self.torn, self.count = list(assorted()), torn, 0

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for number, pair in enumerate(self.tensors, start=1):
            self.count = number
            if self.count == self.torn:
                raise FloatingPointError("the gradient tore")
            yield pair

    @property
    def exhausted(self) -> bool:
        return self.count == len(self.tensors)


def reason(reference: ray.ObjectRef[Any]) -> str:
    with pytest.raises(TransportError) as caught:
        ray.get(reference)
    return str(caught.value)


def test_every_reader_gets_every_version_over_one_connection(medium: str, sender: Sender, readers: ActorGroup) -> None:
    """One of them reads when all have arrived: no buffer may have been written again by then."""
    for version, method in ((1, "read"), (2, "read_and_keep"), (3, "read")):
        arrival = way_of(sender, medium).arrival(version)
        pending = readers.submit_all(method, arrival)
        sent = sender.send(version, assorted(version))
        assert [sent, sent] == readers.collect(method, pending)
        assert sent == checksum(assorted(version))


def test_memory_is_bounded_by_a_few_buckets(medium: str, readers: ActorGroup) -> None:
    """256 MiB in buckets of 4: two at the sender, two in a reader, and what the medium itself takes.

    A process that uses Ray's store has mapped all of it, 80 MiB here.
    """
    with closing(Sender(medium, "127.0.0.1", 2, 4 * MIB, TIMEOUT_S)) as sender:
        pending = readers.submit_all("growth", way_of(sender, medium).arrival(1))
        before = peak_memory()
        sender.send(1, large(256))
        growth = [peak_memory() - before, *readers.collect("growth", pending)]
    mapped = STORE_MIB * MIB if medium == "object_store" else 0
    assert max(growth) < mapped + 48 * MIB, [f"{grown / MIB:.0f} MiB" for grown in growth]


def test_a_reader_that_refuses_ends_the_transfer_for_all_and_the_next_one_succeeds(
    medium: str, sender: Sender, readers: ActorGroup
) -> None:
    arrival, tensors = way_of(sender, medium).arrival(1), Counted()
    good, bad = readers.actors
    read, refused = good.read.remote(arrival), bad.refuse.remote(arrival, 3)
    with pytest.raises(TransportError, match=r"the sampler in process \d+ on .* failed: it stopped reading.*0\.scale"):
        sender.send(1, tensors)
    assert tensors.exhausted
    assert "the learner at 127.0.0.1" in (why := reason(read)) and "it stopped reading" in why
    ray.get(refused)
    pending = readers.submit_all("read", way_of(sender, medium).arrival(2))
    sent = sender.send(2, assorted())
    assert readers.collect("read", pending) == [sent, sent]


def test_a_sender_whose_tensors_fail_tells_every_reader(medium: str, sender: Sender, readers: ActorGroup) -> None:
    pending = readers.submit_all("read", way_of(sender, medium).arrival(1))
    with pytest.raises(FloatingPointError):
        sender.send(1, Counted(torn=40))
    for reference in pending:
        assert "failed: FloatingPointError: the gradient tore" in reason(reference)
    pending = readers.submit_all("read", way_of(sender, medium).arrival(2))
    sent = sender.send(2, assorted())
    assert readers.collect("read", pending) == [sent, sent]


def test_a_reader_that_dies_ends_the_transfer_at_once(
    medium: str, sender: Sender, readers: ActorGroup, placement: Placement
) -> None:
    victim = ActorGroup.start("victim", Reader, placement["reader"][2:], timeout_s=120)
    arrival, tensors = way_of(sender, medium).arrival(1), Counted()
    pending = readers.actors[0].read.remote(arrival)
    dying = victim.actors[0].exit.remote(arrival, 10)
    with pytest.raises(LostError, match=r"the sampler in process \d+ on .* went away"):
        sender.send(1, tensors)
    assert tensors.exhausted
    assert "went away" in reason(pending)
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(dying)
    victim.shutdown()


# ── the sender alone ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_sender_that_nobody_calls_gives_up_and_exhausts_its_tensors() -> None:
    tensors = Counted()
    with (
        closing(Sender("shared_memory", "127.0.0.1", 2, BUCKET, timeout_s=0.2)) as sender,
        pytest.raises(LostError, match=r"0 of 2 samplers asked for the weights within 0\.2 s \(`sync.timeout_s`\)"),
    ):
        sender.send(1, tensors)
    assert tensors.exhausted


def test_strangers_are_not_let_in() -> None:
    """A port of the cluster's network: callers that do not know the key, or say nothing, count for no sampler."""
    with closing(Sender("shared_memory", "127.0.0.1", 1, BUCKET, timeout_s=0.5)) as sender:
        where = (sender.address.host, sender.address.port)
        with socket.create_connection(where) as stranger, socket.create_connection(where):
            stranger.sendall(b"x" * 64)
            with pytest.raises(LostError, match="0 of 1 samplers"):
                sender.send(1, assorted())


def test_a_sender_that_is_gone_is_named() -> None:
    sender = Sender("shared_memory", "127.0.0.1", 1, BUCKET, TIMEOUT_S)
    sender.close()
    with pytest.raises(LostError, match=rf"the learner at 127\.0\.0\.1:{sender.address.port} cannot be reached"):
        dial(sender.address, "a sampler", timeout_s=5)


def test_a_receiver_to_which_another_version_is_announced_is_closed() -> None:
    """Over gloo, whose group takes a thread to end; closing once more ends nothing twice."""
    tensors = Counted()
    with closing(Sender("gloo", "127.0.0.1", 1, BUCKET, TIMEOUT_S)) as sender, ThreadPoolExecutor(1) as thread:
        sent = thread.submit(sender.send, 1, tensors)
        receiver = Receiver("gloo", sender.address, TIMEOUT_S)
        with pytest.raises(TransportError, match="version 2 was to come"):
            receiver.begun(2)
        with pytest.raises(LostError, match="went away"):
            sent.result()
        receiver.close()
    assert tensors.exhausted


def test_lines_are_heard_on_descriptors_that_select_cannot_name() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as ours:
        theirs, _ = server.accept()
        high = socket.socket(fileno=fcntl.fcntl(ours.fileno(), fcntl.F_DUPFD, 1024))
        assert high.fileno() >= 1024
        line, other = Line(high, "the other side", 5), Line(theirs, "this side", 5)
        with pytest.raises(LostError, match="the other side said nothing"):
            next_messages([line], 0.05)
        other.tell("a word")
        assert next_messages([line], 5) == [(line, "a word")]
        other.hang_up()
        with pytest.raises(LostError, match="went away"):
            next_messages([line], 5)
        line.hang_up()
