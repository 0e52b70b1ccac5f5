"""A sampler worker's side: calls the sender, takes bucket after bucket, one ahead of the loader, and hands out tensors."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rl.sync.bucket import Piece, unpacked
from rl.sync.buffers import Buffers
from rl.sync.line import Address, Failed, LostError, TransportError, dial, failure
from rl.sync.media import MEDIA, Party
from rl.sync.seats import Seat
from rl.sync.sender import Begin, Done, Sent, Taken, Welcome

Taking = tuple[tuple[Piece, ...], Tensor] | None


class StaleError(TransportError):
    """A connection that was kept ended with an earlier version."""


@dataclass(frozen=True, slots=True)
class Feed:
    """A sender, and where it is."""

    seat: Seat
    address: Address


@dataclass(frozen=True, slots=True)
class Way:
    """A medium that is laid: the senders at one end of it."""

    medium: str
    feeds: tuple[Feed, ...]
    timeout_s: float

    def arrival(self, version: int) -> Arrival:
        return Arrival(self.medium, self.feeds, self.timeout_s, version)


@dataclass(frozen=True, slots=True)
class Arrival:
    """The tensors of `version`, received by the process that iterates: once in every process that the senders count on.

    Picklable: it can be handed to a worker. Iteration raises TransportError, naming the side that failed; to stop early is
    to fail the transfer.
    """

    medium: str
    feeds: tuple[Feed, ...]
    timeout_s: float
    version: int

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        yield from self._connected().tensors(self.version)

    def _connected(self) -> Receiver:
        """A receiver to which `version` has been announced. Connections are kept from one version to the next."""
        address = self._address()
        kept = _kept.pop(address, None)
        if kept is not None:
            try:
                return kept.begun(self.version)
            except (LostError, StaleError):
                pass  # its sender has hung up, perhaps to wait for new calls
        for ended in [address for address, receiver in _kept.items() if receiver.line.broken()]:
            _kept.pop(ended).close()
        return Receiver(self.medium, address, self.timeout_s).begun(self.version)

    def _address(self) -> Address:
        """The sender in this process's neighbourhood; the only one, where one feeds all."""
        places = [feed.seat.neighbourhood(self.medium) for feed in self.feeds]
        mine = Seat.here(MEDIA[self.medium].device()).neighbourhood(self.medium)
        return self.feeds[places.index(mine)].address


class Receiver:
    """A connection to a sender."""

    def __init__(self, medium: str, address: Address, timeout_s: float) -> None:
        self.address, self.device = address, MEDIA[medium].device()
        self.line = dial(address, f"the sampler in process {os.getpid()} on {socket.gethostname()}", timeout_s)
        try:
            welcome = self._hear()
            assert isinstance(welcome, Welcome), welcome
            party = Party(welcome.rank, welcome.size, self.line.host, self.device, welcome.bucket_bytes, timeout_s)
            self._buffers = Buffers(self.device, welcome.bucket_bytes)
            self._inlet = MEDIA[medium].inlet(party, welcome.invitation)
        except BaseException:
            self.line.hang_up()
            raise

    def begun(self, version: int) -> Receiver:
        """This receiver when `version` has been announced to it; otherwise it is closed, whatever was the matter."""
        try:
            self.begin(version)
        except BaseException:
            self.close()
            raise
        return self

    def begin(self, version: int) -> None:
        """Wait for the announcement of `version`. Raises StaleError when an earlier one ended badly on this connection."""
        message = self.line.hear()
        if isinstance(message, Failed):
            raise failure(self.line, message) if message.version == version else StaleError(message.reason)
        if not isinstance(message, Begin) or message.version != version:
            raise TransportError(f"{self.line.peer} sent {message}, version {version} was to come")

    def tensors(self, version: int) -> Iterator[tuple[str, Tensor]]:
        """All tensors of the announced version. A reader that stops before the end, or fails, ends the connection."""
        last = "none"
        try:
            for name, tensor in unpacked(self._buckets()):
                last = name
                yield name, tensor
            self._inlet.rest()
        except GeneratorExit:
            self._fail(version, f"it stopped reading; the last tensor was {last}")
            raise
        except Exception as error:
            self._fail(version, f"{type(error).__name__}: {error}")
            raise
        _kept[self.address] = self

    def close(self) -> None:
        self.line.hang_up()
        self._inlet.close()

    def _hear(self) -> Any:
        message = self.line.hear()
        if isinstance(message, Failed):
            raise failure(self.line, message)
        return message

    def _fail(self, version: int, reason: str) -> None:
        self.line.part(Failed(version, reason))
        self._inlet.close()

    def _buckets(self) -> Iterator[tuple[tuple[Piece, ...], Tensor]]:
        """Buckets in order; while one is read the next is received, into another buffer.

        That one begins when the reader has the first tensor of this bucket in hand, and so has let go of the last one's.
        """
        ahead = ThreadPoolExecutor(1, thread_name_prefix="weights")
        coming: Future[Taking] = ahead.submit(self._take)
        try:
            while (taken := coming.result()) is not None:
                pieces, buffer = taken
                self._buffers.lend(buffer)
                del taken
                yield pieces[:1], buffer
                coming = ahead.submit(self._take)
                yield pieces[1:], buffer
                del buffer
        finally:
            ahead.shutdown(wait=False, cancel_futures=True)

    def _take(self) -> Taking:
        message = self._hear()
        if isinstance(message, Done):
            return None
        assert isinstance(message, Sent), message
        buffer = self._buffers.get(message.nbytes)
        self._inlet.take(message.token, buffer, self._check)
        self.line.tell(Taken())
        return message.pieces, buffer

    def _check(self) -> None:
        if self.line.broken():
            raise self.line.last_words()


# By the sender's address: what this process need not connect to again (a group of NCCL's takes seconds to form).
_kept: dict[Address, Receiver] = {}
