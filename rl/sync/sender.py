"""The learner's side: fills buckets and sends them while at most two are not yet taken, then says that it was all."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rl.sync.bucket import Piece, packed
from rl.sync.line import Address, Failed, Line, LostError, Switchboard, TransportError, failure, next_messages
from rl.sync.media import MEDIA, Outlet, Party
from rl.weights import Checksummed

SLOTS = 2  # one is filled while the other is on its way


@dataclass(frozen=True, slots=True)
class Welcome:
    """The first message to a receiver: who it is, and how it joins the medium."""

    rank: int
    size: int
    bucket_bytes: int
    invitation: Any


@dataclass(frozen=True, slots=True)
class Begin:
    """The first message of a transfer."""

    version: int


@dataclass(frozen=True, slots=True)
class Sent:
    """A bucket is on its way: what it holds, and the medium's token for it."""

    nbytes: int
    pieces: tuple[Piece, ...]
    token: Any


@dataclass(frozen=True, slots=True)
class Taken:
    """A receiver's answer: it has the bytes of one more bucket."""


@dataclass(frozen=True, slots=True)
class Done:
    """That was all: so many tensors."""

    tensors: int


class Sender:
    """Sends the same weights to `receivers` processes, as often as asked; they call in at `address` and stay connected."""

    def __init__(self, medium: str, host: str, receivers: int, bucket_bytes: int, timeout_s: float) -> None:
        self.name, self.medium, self.receivers, self.timeout_s = medium, MEDIA[medium], receivers, timeout_s
        self.party = Party(0, receivers + 1, host, self.medium.device(), bucket_bytes, timeout_s)
        self._switchboard = Switchboard(host, timeout_s)
        self._lines: list[Line] = []
        self._outlet: Outlet | None = None
        self._taken: dict[Line, int] = {}

    @property
    def address(self) -> Address:
        return self._switchboard.address

    def send(self, version: int, tensors: Iterable[tuple[str, Tensor]]) -> str:
        """Send all tensors to all receivers; the checksum of what was sent.

        `tensors` is exhausted whatever becomes of the receivers: to gather them is a collective of all learner ranks.
        Raises TransportError when a receiver fails or is lost, or the medium; what `tensors` raises is passed on to the
        receivers.
        """
        stream = iter(tensors)
        passing = Checksummed(stream)
        try:
            outlet = self._meet()
            self._tell(Begin(version))
            self._send_buckets(outlet, passing)
            self._tell(Done(passing.count))
            with self._moving():
                outlet.rest()
        except Exception as error:
            try:
                self._hang_up(Failed(version, f"{type(error).__name__}: {error}"))
            finally:
                exhausted(stream)
            raise
        return passing.checksum

    def close(self) -> None:
        self._hang_up(None)
        self._switchboard.close()

    def _meet(self) -> Outlet:
        """Wait for the calls of all receivers, the first time or after a failure."""
        if self._outlet is not None and not any(line.broken() for line in self._lines):
            return self._outlet
        self._hang_up(None)
        deadline = time.monotonic() + self.timeout_s
        while len(self._lines) < self.receivers:
            line = self._switchboard.accept(deadline)
            if line is None:
                raise LostError(
                    f"{len(self._lines)} of {self.receivers} samplers asked for the weights within {self.timeout_s:g} s "
                    "(`sync.timeout_s`)"
                )
            self._lines.append(line)
        with self._moving():
            self._outlet = self.medium.outlet(self.party)
            invitation = self._outlet.invitation()
        for rank, line in enumerate(self._lines, start=1):
            line.tell(Welcome(rank, self.party.size, self.party.bucket_bytes, invitation))
        with self._moving():
            self._outlet.open()
        return self._outlet

    def _send_buckets(self, outlet: Outlet, tensors: Iterable[tuple[str, Tensor]]) -> None:
        self._taken = dict.fromkeys(self._lines, 0)
        sent = 0

        def next_buffer() -> Tensor:
            self._wait(sent + 1 - SLOTS)
            with self._moving():
                return outlet.staging(sent % SLOTS)

        for bucket in packed(tensors, next_buffer):
            with self._moving():
                token = outlet.send(sent % SLOTS, bucket.nbytes)
            self._tell(Sent(bucket.nbytes, bucket.pieces, token))
            sent += 1
        self._wait(sent)

    def _wait(self, buckets: int) -> None:
        """Until every receiver has taken so many buckets."""
        while min(self._taken.values()) < buckets:
            for line, message in next_messages(self._lines, self.timeout_s):
                if isinstance(message, Failed):
                    raise failure(line, message)
                assert isinstance(message, Taken), message
                self._taken[line] += 1

    def _tell(self, message: Any) -> None:
        for line in self._lines:
            line.tell(message)

    def _hang_up(self, farewell: Failed | None) -> None:
        for line in self._lines:
            if farewell is not None:
                with suppress(TransportError):  # that one is why there is bad news to tell
                    line.tell(farewell)
            line.hang_up()
        self._lines = []
        outlet, self._outlet = self._outlet, None
        if outlet is not None:
            with self._moving():
                outlet.close()

    @contextmanager
    def _moving(self) -> Iterator[None]:
        """What the medium raises becomes a TransportError: the rank then knows that its weights are well, and goes on."""
        try:
            yield
        except Exception as error:  # each medium's library has errors of its own: torch's, Ray's, the system's
            raise TransportError(f"medium {self.name} failed: {type(error).__name__}: {error}") from error


def exhausted(tensors: Iterator[tuple[str, Tensor]]) -> None:
    """For a learner rank that feeds nobody: it gathers along."""
    for _ in tensors:
        pass
