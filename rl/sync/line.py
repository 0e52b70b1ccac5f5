"""The control line of a sender and one of its receivers: small pickled messages over TCP.

Its other purpose is bad news: a process that dies closes its end, so whoever waits for it hears of it at once, whatever
the medium that carries the bytes would do. What is alive and silent is given up after `timeout_s`, and so is whoever dies
while the medium itself is joined: there both sides wait for each other without looking at the line.
"""

from __future__ import annotations

import hmac
import pickle
import secrets
import select
import socket
import struct
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

KEY_BYTES = 32
INTRODUCTION_S = 2.0  # a caller that has not said who it is by then is none of ours
FAREWELL_S = 5.0
_LENGTH = struct.Struct("!Q")


class TransportError(RuntimeError):
    """Weights did not get through; the message names the side that failed."""


class LostError(TransportError):
    """The other side is gone: its process ended, or it hung up."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a sender listens. Without `key` nobody is let in: what comes over a line is unpickled."""

    host: str
    port: int
    key: bytes


@dataclass(frozen=True, slots=True)
class Failed:
    """Why the transfer of `version` ended early, at the side that says so."""

    version: int
    reason: str


class Line:
    """One end. `peer` is the other side's name in errors."""

    def __init__(self, connection: socket.socket, peer: str, timeout_s: float) -> None:
        self._socket, self.peer, self.timeout_s = connection, peer, timeout_s
        connection.settimeout(timeout_s)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a machine that lost power closes nothing
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @property
    def host(self) -> str:
        """This end's own address on the way to the other."""
        return str(self._socket.getsockname()[0])

    def fileno(self) -> int:
        return self._socket.fileno()

    def tell(self, message: Any) -> None:
        """Raises TransportError: what the other side said last, or that it is gone."""
        words = pickle.dumps(message, protocol=5)
        try:
            self._socket.sendall(_LENGTH.pack(len(words)) + words)
        except TimeoutError as error:
            raise self._lost(error) from error
        except OSError:
            raise self.last_words() from None

    def hear(self) -> Any:
        """The next message. Raises LostError when the other side is gone or says nothing for `timeout_s`."""
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size))
        return pickle.loads(self._read(length))

    def broken(self) -> bool:
        """Whether the other side has hung up, even if something it said before is still to be heard; never waits."""
        watch = select.poll()
        watch.register(self._socket, select.POLLRDHUP)
        return bool(watch.poll(0))

    def last_words(self) -> TransportError:
        """Of a broken line: the error that says why it is."""
        try:
            while not isinstance(message := self.hear(), Failed):
                pass
        except LostError as error:
            return error
        return failure(self, message)

    def part(self, farewell: Any) -> None:
        """Say a last word and hang up when the other side has, so that nothing unread cuts the word off."""
        with suppress(OSError, LostError):  # the other side may be why it is the last
            self.tell(farewell)
            self._socket.shutdown(socket.SHUT_WR)
            self._socket.settimeout(FAREWELL_S)
            while self._socket.recv(1 << 16):
                pass
        self.hang_up()

    def hang_up(self) -> None:
        """Close; a thread that waits in `hear` wakes with LostError."""
        with suppress(OSError):  # the other side was faster
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _read(self, length: int) -> bytes:
        words = bytearray()
        while len(words) < length:
            try:
                part = self._socket.recv(length - len(words))
            except OSError as error:
                raise self._lost(error) from error
            if not part:
                raise LostError(f"{self.peer} went away")
            words += part
        return bytes(words)

    def _lost(self, error: OSError) -> LostError:
        if isinstance(error, TimeoutError):
            return LostError(f"{self.peer} said nothing for {self.timeout_s:g} s (`sync.timeout_s`)")
        return LostError(f"{self.peer} went away ({error})")


class Switchboard:
    """A listening sender."""

    def __init__(self, host: str, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._socket = socket.create_server((host, 0))
        self.address = Address(host, self._socket.getsockname()[1], secrets.token_bytes(KEY_BYTES))

    def accept(self, deadline: float) -> Line | None:
        """The next caller that knows the key, under the name it gives; None when nobody calls before `deadline`."""
        while True:
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                connection, (host, *_) = self._socket.accept()
            except TimeoutError:
                return None
            caller = Line(connection, f"the caller on {host}", INTRODUCTION_S)
            with suppress(LostError):
                if hmac.compare_digest(caller._read(KEY_BYTES), self.address.key):
                    return Line(connection, caller.hear(), self.timeout_s)
            caller.hang_up()

    def close(self) -> None:
        self._socket.close()


def dial(address: Address, name: str, timeout_s: float) -> Line:
    """Call a sender and say who is calling. Raises LostError when it cannot be reached."""
    try:
        connection = socket.create_connection((address.host, address.port), timeout_s)
    except OSError as error:
        raise LostError(f"the learner at {address.host}:{address.port} cannot be reached ({error})") from error
    line = Line(connection, f"the learner at {address.host}:{address.port}", timeout_s)
    connection.sendall(address.key)
    line.tell(name)
    return line


def failure(line: Line, failed: Failed) -> TransportError:
    return TransportError(f"{line.peer} failed: {failed.reason}")


def next_messages(lines: Sequence[Line], timeout_s: float) -> list[tuple[Line, Any]]:
    """What the lines say next, as soon as one says something. Raises LostError as soon as one is gone, or all are silent."""
    watch = select.poll()  # select.select fails on descriptors from 1024 on, and a process with Ray and vLLM has many
    by_descriptor = {line.fileno(): line for line in lines}
    for descriptor in by_descriptor:
        watch.register(descriptor, select.POLLIN)
    readable = [by_descriptor[descriptor] for descriptor, _ in watch.poll(timeout_s * 1000)]
    if not readable:
        raise LostError(f"{', '.join(line.peer for line in lines)} said nothing for {timeout_s:g} s (`sync.timeout_s`)")
    return [(line, line.hear()) for line in readable]
