"""Medium cuda_ipc: the sender's slots lie on the GPU that both processes hold; receivers map and copy them there.

torch counts an exported buffer's users: one export is to be opened once. So a slot is exported once a transfer, and a
receiver keeps what it has opened until the transfer ends. An allocator with `expandable_segments` exports nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import rebuild_cuda_tensor, reduce_tensor

from rl.sync.media import Party

DEVICE_ARGUMENT = 6  # of rebuild_cuda_tensor: the device's number, which the receiver counts by itself


@dataclass(frozen=True, slots=True)
class Token:
    """A slot, and how to open it."""

    slot: int
    handle: tuple[Any, ...]


class _Outlet:
    def __init__(self, party: Party) -> None:
        self._party = party
        self._slots: dict[int, Tensor] = {}
        self._handles: dict[int, tuple[Any, ...]] = {}

    def invitation(self) -> None:
        return None

    def open(self) -> None:
        pass

    def staging(self, slot: int) -> Tensor:
        if slot not in self._slots:
            self._slots[slot] = torch.empty(self._party.bucket_bytes, dtype=torch.uint8, device=self._party.device)
            _, self._handles[slot] = reduce_tensor(self._slots[slot])
        return self._slots[slot]

    def send(self, slot: int, nbytes: int) -> Token:
        torch.cuda.current_stream(self._party.device).synchronize()
        return Token(slot, self._handles[slot])

    def rest(self) -> None:
        self._slots.clear()
        self._handles.clear()

    def close(self) -> None:
        self.rest()


class _Inlet:
    def __init__(self, party: Party) -> None:
        self._device = party.device
        self._slots: dict[int, Tensor] = {}

    def take(self, token: Token, into: Tensor, check: Callable[[], None]) -> None:
        if token.slot not in self._slots:
            arguments = list(token.handle)
            arguments[DEVICE_ARGUMENT] = self._device.index
            self._slots[token.slot] = rebuild_cuda_tensor(*arguments)
        into.copy_(self._slots[token.slot][: into.numel()])
        torch.cuda.current_stream(self._device).synchronize()  # a thread's own device may be another

    def rest(self) -> None:
        self._slots.clear()

    def close(self) -> None:
        self.rest()


def outlet(party: Party) -> _Outlet:
    return _Outlet(party)


def inlet(party: Party, invitation: Any) -> _Inlet:
    return _Inlet(party)
