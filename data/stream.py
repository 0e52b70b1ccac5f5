"""PromptStream: the endless, seeded, resumable order in which training sees its samples.

The samples that come next are read while the program works with those that it took. A stream's place is what was taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from data.read_ahead import ReadAhead
from data.sample import Sample

Place = tuple[int, int, int]  # epoch, position in its order, index of the sample


class StreamState(TypedDict):
    """Where a stream stands: the next sample is number `position` of epoch `epoch`'s order."""

    seed: int
    size: int
    shuffle: bool
    epoch: int
    position: int


class PromptStream:
    """Goes through `samples` again and again, every epoch in a new order that only (seed, epoch) decide.

    `take(n)` crosses epoch boundaries without skipping or repeating; nothing is filtered. `epoch` counts the epochs
    that are complete. A state saved anywhere, an exact epoch boundary included, resumes with the very next sample.
    """

    def __init__(self, samples: Sequence[Sample], seed: int, shuffle: bool = True) -> None:
        if len(samples) == 0:
            raise ValueError("a prompt stream needs at least one sample, the dataset is empty")
        if seed < 0:
            raise ValueError(f"the stream's seed must not be negative, got {seed}")
        self.samples = samples
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0
        self.position = 0
        self._order = self._order_of(0)
        self._reader = ReadAhead(samples)

    def take(self, n: int) -> list[Sample]:
        """The next `n` samples; then as many are read ahead. Raises what reading one of them raises, and stays in place."""
        if n < 0:
            raise ValueError(f"cannot take {n} samples")
        taken = self._reader.read([index for _, _, index in self.upcoming(n)])
        self._advance(n)
        self._reader.begin([index for _, _, index in self.upcoming(n)])
        return taken

    def upcoming(self, n: int) -> list[Place]:
        """The places of the next `n` samples."""
        places: list[Place] = []
        epoch, position, order = self.epoch, self.position, self._order
        while True:
            indices = order[position : position + n - len(places)].tolist()
            places += [(epoch, position + number, index) for number, index in enumerate(indices)]
            if len(places) == n:
                return places
            epoch, position = epoch + 1, 0
            order = self._order_of(epoch)

    def state_dict(self) -> StreamState:
        return {
            "seed": self.seed,
            "size": len(self.samples),
            "shuffle": self.shuffle,
            "epoch": self.epoch,
            "position": self.position,
        }

    def load_state_dict(self, state: StreamState) -> None:
        """Stand where `state` stood. Raises ValueError when it belongs to another dataset, seed or order."""
        mine = self.state_dict()
        for name, saved, here in (
            ("seed", state["seed"], mine["seed"]),
            ("number of samples", state["size"], mine["size"]),
            ("shuffle", state["shuffle"], mine["shuffle"]),
        ):
            if saved != here:
                raise ValueError(
                    f"the saved stream has {name} {saved}, this one {here}: resume with the data of the saved run"
                )
        if state["epoch"] < 0 or not 0 <= state["position"] < state["size"]:
            raise ValueError(f"the saved stream stands nowhere: epoch {state['epoch']}, position {state['position']}")
        self.epoch, self.position = state["epoch"], state["position"]
        self._order = self._order_of(self.epoch)

    def _advance(self, count: int) -> None:
        epochs, self.position = divmod(self.position + count, len(self.samples))
        if epochs:
            self.epoch += epochs
            self._order = self._order_of(self.epoch)

    def _order_of(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(len(self.samples))
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.samples))
