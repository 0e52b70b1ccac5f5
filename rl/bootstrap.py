"""Percentile bootstrap intervals of evaluation metrics, resampled by sample, in numpy alone.

Every metric is a ratio of sums over the samples, Σ value·weight / Σ weight: the plain mean where every weight is 1, a mean
over some of the samples (those parsed, those with distractors) where theirs is 1 and the others' 0. One draw of samples
serves all metrics, so their replicates belong together, and those of several datasets average into the replicates of
their mean.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 10_000
LEVEL = 0.95
BLOCK = 1 << 22  # drawn indices held at once: 32 MB

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A metric's value on the samples themselves, and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def generator(seed: int, *names: object) -> np.random.Generator:
    """A generator of its own for every dataset and shot count: adding one to an evaluation moves no other's interval."""
    digest = hashlib.blake2b("|".join(map(str, (seed, *names))).encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def ratio(values_MN: Floats, weights_MN: Floats) -> Floats:
    """Σ value·weight / Σ weight of M metrics over N samples, [M]; NaN where no sample has weight."""
    return _divide((values_MN * weights_MN).sum(1), weights_MN.sum(1))


def replicates(
    values_MN: Floats, weights_MN: Floats, rng: np.random.Generator, resamples: int = RESAMPLES, block: int = BLOCK
) -> Floats:
    """The same ratios on `resamples` draws of N samples with replacement, [resamples, M]."""
    count = values_MN.shape[1]
    if count == 0 or resamples < 1:
        raise ValueError(f"a bootstrap needs samples and resamples, got {count} and {resamples}")
    sums_NM, weights_NM = (values_MN * weights_MN).T, weights_MN.T
    rows = max(1, block // count)
    made = [
        _resample(sums_NM, weights_NM, rng.integers(0, count, (min(rows, resamples - start), count)))
        for start in range(0, resamples, rows)
    ]
    return np.concatenate(made)


def _resample(sums_NM: Floats, weights_NM: Floats, drawn_RN: npt.NDArray[np.int64]) -> Floats:
    """Ratios of R draws: how often each sample was drawn, times what it contributes."""
    draws, count = drawn_RN.shape
    flat = (drawn_RN + np.arange(draws)[:, None] * count).ravel()
    times_RN = np.bincount(flat, minlength=draws * count).reshape(draws, count).astype(np.float64)
    return _divide(times_RN @ sums_NM, times_RN @ weights_NM)


def _divide(sums: Floats, weights: Floats) -> Floats:
    return np.divide(sums, weights, out=np.full_like(sums, np.nan), where=weights > 0)


def interval(value: float, replicates_R: Floats, level: float = LEVEL) -> Interval:
    """The percentile interval. Draws in which no sample had weight say nothing and are left out."""
    tail = (1 - level) / 2
    low, high = np.nanquantile(replicates_R, (tail, 1 - tail))
    return Interval(float(value), float(low), float(high))
