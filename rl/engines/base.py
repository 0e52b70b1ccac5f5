"""The interface of a training engine: what a learner or a reference asks of FSDP2 or DeepSpeed.

An engine is one rank's share of a policy and, when it trains, of its optimizer. It knows no rewards, groups or Ray: it
runs under Ray actors, under torchrun, or alone in one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from rl.policy import Policy


@dataclass(frozen=True)
class Rendezvous:
    """Where the ranks of one engine meet."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    master_address: str = "127.0.0.1"
    master_port: int = 0

    @property
    def alone(self) -> bool:
        return self.world_size == 1


class Engine(Protocol):
    """One rank of a policy. Methods marked collective must be called by every rank in the same order."""

    policy: Policy
    device: torch.device

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients of a loss that is normalised over the global batch and scaled by world size. Collective."""

    def step(self, lr: float) -> float:
        """Clip, update at learning rate `lr`, clear gradients; returns the gradient norm before clipping. Collective."""

    def named_tensors(self, wanted: Callable[[str], bool] = lambda name: True) -> Iterator[tuple[str, Tensor]]:
        """(engine name, full tensor in the compute dtype) of every parameter, gathered block by block. Collective.

        Only those whose engine name is `wanted` are gathered. A tied parameter comes once. Every rank must exhaust the
        iterator.
        """

    def save(self, directory: Path) -> None:
        """Write this rank's shards of parameters and optimizer under `directory`. Collective."""

    def load(self, directory: Path) -> None:
        """Read what `save` wrote, at this or another world size. Collective."""

    def load_policy(self, directory: Path) -> None:
        """Read the parameters alone of what `save` wrote: a stage starts where the one before it ended. Collective."""

    def total(self, values: Tensor) -> Tensor:
        """Sum over the ranks. Collective."""

    def largest(self, values: Tensor) -> Tensor:
        """Maximum over the ranks. Collective."""

    def trained_pieces(self) -> list[Tensor]:
        """This rank's pieces of the trained parameters, as views to write to; what is written counts after `refresh`."""

    def refresh(self) -> None:
        """Compute with what the pieces hold now. Collective."""

    def offload(self) -> None:
        """Move parameters and optimizer state to host memory, between two steps, so that another may use the device."""

    def onload(self) -> None:
        """Bring back what `offload` moved; before it no other method may be called but `close`."""

    def close(self) -> None:
        """Leave the process group."""
