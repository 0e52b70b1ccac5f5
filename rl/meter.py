"""Metrics of one update, summed over micro-batches and ranks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Meter:
    """Sums, weighted means and maxima by name; `reduce` combines the ranks, which must have met the same names."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, Tensor] = {}
        self._peaks: dict[str, Tensor] = {}

    def add(self, name: str, value: Tensor) -> None:
        """Accumulate a share of a total."""
        self._sums[name] = self._sums.get(name, torch.zeros(())) + value.detach().double().cpu()

    def mean(self, name: str, value: Tensor, weight: Tensor) -> None:
        """Accumulate a mean over `weight` items."""
        weight = weight.detach().double().cpu()
        self.add(name, value.detach().double().cpu() * weight)
        self._weights[name] = self._weights.get(name, torch.zeros(())) + weight

    def peak(self, name: str, value: Tensor) -> None:
        """Keep the largest value."""
        value = value.detach().double().cpu()
        self._peaks[name] = torch.maximum(self._peaks.get(name, value), value)

    def reduce(self, total: Callable[[Tensor], Tensor], largest: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The metrics over all ranks. Collective."""
        names, weighted, peaks = sorted(self._sums), sorted(self._weights), sorted(self._peaks)
        sums = total(torch.stack([self._sums[name] for name in names])) if names else torch.empty(0)
        weights = total(torch.stack([self._weights[name] for name in weighted])) if weighted else torch.empty(0)
        tops = largest(torch.stack([self._peaks[name] for name in peaks])) if peaks else torch.empty(0)
        metrics = dict(zip(names, sums.tolist(), strict=True))
        for name, weight in zip(weighted, weights.tolist(), strict=True):
            metrics[name] = metrics[name] / weight if weight else 0.0
        return metrics | dict(zip(peaks, tops.tolist(), strict=True))
