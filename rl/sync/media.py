"""What a medium offers: a sender's outlet and a receiver's inlet, which move buckets of bytes and know nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

import torch
from torch import Tensor


class Outlet(Protocol):
    """The sender's end. A slot is one of the buffers that it fills in turn."""

    def invitation(self) -> Any:
        """What a receiver needs to open its inlet."""

    def open(self) -> None:
        """Wait for the receivers' inlets, where the medium must."""

    def staging(self, slot: int) -> Tensor:
        """The slot's buffer, a bucket's bytes long, to be filled; whoever was sent its last content has taken it."""

    def send(self, slot: int, nbytes: int) -> Any:
        """Begin to move the slot's first `nbytes`; what a receiver needs to take them."""

    def rest(self) -> None:
        """A transfer has ended: give GPU memory back. Host memory is kept for the next one: new pages are slow."""

    def close(self) -> None:
        """Let go of whatever connects it with its receivers, without waiting for them."""


class Inlet(Protocol):
    """A receiver's end."""

    def take(self, token: Any, into: Tensor, check: Callable[[], None]) -> None:
        """Fill `into` with the bytes of `token`. `check` raises when the sender is gone: it is called while waiting."""

    def rest(self) -> None:
        """As `Outlet.rest`."""

    def close(self) -> None:
        """As `Outlet.close`."""


@dataclass(frozen=True, slots=True)
class Medium:
    """A module with `outlet(party)` and `inlet(party, invitation)`, and the kind of device whose memory it moves."""

    module: str
    device_type: str

    def outlet(self, party: Party) -> Outlet:
        outlet: Outlet = import_module(self.module).outlet(party)
        return outlet

    def inlet(self, party: Party, invitation: Any) -> Inlet:
        inlet: Inlet = import_module(self.module).inlet(party, invitation)
        return inlet

    def device(self) -> torch.device:
        """This process's device of that kind."""
        return torch.device("cuda", torch.cuda.current_device()) if self.device_type == "cuda" else torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Party:
    """A process that takes part in a transfer: the sender is rank 0, its receivers are 1 to `size` − 1."""

    rank: int
    size: int
    host: str
    device: torch.device
    bucket_bytes: int
    timeout_s: float


MEDIA = {
    "object_store": Medium("rl.sync.object_store", "cpu"),
    "gloo": Medium("rl.sync.collective", "cpu"),
    "nccl": Medium("rl.sync.collective", "cuda"),
    "shared_memory": Medium("rl.sync.shared_memory", "cpu"),
    "cuda_ipc": Medium("rl.sync.cuda_ipc", "cuda"),
}
