"""The adapter that a stage began with, kept beside the one that is trained: a reference on the learner's own base.

Kept are numbers, not modules: each rank's pieces, in host memory. So nothing of it can get into a checkpoint, an export, a
publication or the optimizer. To compute with them, they take the trained ones' place for a while.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from rl.engines.base import Engine


class KeptAdapter:
    """The trained parameters of `engine` as they are now. Collective wherever the engine's `refresh` is."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.kept = [piece.to("cpu", copy=True) for piece in engine.trained_pieces()]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The engine computes with what was kept; afterwards the trained ones are back, bit for bit."""
        trained = [piece.clone() for piece in self.engine.trained_pieces()]
        self._put(self.kept)
        try:
            yield
        finally:
            self._put(trained)

    def _put(self, values: Sequence[Tensor]) -> None:
        for piece, value in zip(self.engine.trained_pieces(), values, strict=True):
            piece.copy_(value)
        self.engine.refresh()
