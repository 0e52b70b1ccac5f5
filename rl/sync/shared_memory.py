"""Medium shared_memory: the sender's slots are anonymous files in memory, which receivers of the same machine copy from.

The files have no name (memfd): receivers open them through the sender's /proc entry, and when both sides have ended, in
whatever way, nothing is left. Nor does the size of /dev/shm, 64 MB in a container by default, matter.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rl.sync.media import Party


@dataclass(frozen=True, slots=True)
class Token:
    """A slot, and the file behind it."""

    slot: int
    path: str


class _Outlet:
    def __init__(self, party: Party) -> None:
        self._bytes = party.bucket_bytes
        self._files: dict[int, int] = {}
        self._slots: dict[int, Tensor] = {}

    def invitation(self) -> None:
        return None

    def open(self) -> None:
        pass

    def staging(self, slot: int) -> Tensor:
        if slot not in self._slots:
            self._files[slot] = os.memfd_create(f"sightline-weights-{slot}")
            os.ftruncate(self._files[slot], self._bytes)
            self._slots[slot] = torch.frombuffer(mmap.mmap(self._files[slot], self._bytes), dtype=torch.uint8)
        return self._slots[slot]

    def send(self, slot: int, nbytes: int) -> Token:
        return Token(slot, f"/proc/{os.getpid()}/fd/{self._files[slot]}")

    def rest(self) -> None:
        pass

    def close(self) -> None:
        self._slots.clear()
        while self._files:
            os.close(self._files.popitem()[1])


class _Inlet:
    def __init__(self) -> None:
        self._slots: dict[int, Tensor] = {}

    def take(self, token: Token, into: Tensor, check: Callable[[], None]) -> None:
        if token.slot not in self._slots:
            with Path(token.path).open("r+b") as file:
                self._slots[token.slot] = torch.frombuffer(mmap.mmap(file.fileno(), 0), dtype=torch.uint8)
        into.copy_(self._slots[token.slot][: into.numel()])

    def rest(self) -> None:
        pass

    def close(self) -> None:
        self._slots.clear()


def outlet(party: Party) -> _Outlet:
    return _Outlet(party)


def inlet(party: Party, invitation: Any) -> _Inlet:
    return _Inlet()
