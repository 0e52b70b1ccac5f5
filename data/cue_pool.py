"""Every box that might become a LOCUS cue, what became of each, and the seeded choice among them.

A pool row is an annotation of the file (cue source "object") or a random box (source "random_crop"). Each row has a fate:
usable, kept, or the one reason for which it is not; the build's table is a count of fates.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from data.coco import Instances, Verdict
from data.config import LocusConfig
from data.families import MAX_ASPECT_RATIO

# A cue this elongated could pass the processors' limit once padded, scaled and rounded.
_MAX_CUE_ASPECT_RATIO = MAX_ASPECT_RATIO / 2
# Random crops are drawn with sides in ratios from 1:2 to 2:1.
_MAX_RANDOM_ASPECT_RATIO = 2.0


class Fate(IntEnum):
    """What became of a pool row, beyond the reader's Verdict; the two share one column, so the values do not meet."""

    EXCLUDED_IMAGE = 32
    TOO_ELONGATED = 33
    BELOW_MIN_CROP = 34
    OUTSIDE_SIZE_BINS = 35
    BIN_NOT_IN_MIX = 36
    MISSING_IMAGE = 37
    UNDECODABLE_IMAGE = 38
    SIZE_MISMATCH = 39
    KEPT = 64

    @property
    def reason(self) -> str:
        return self.name.lower()


USABLE = int(Verdict.OK)


@dataclass(slots=True)
class CuePool:
    """N candidate boxes (N, 4), corners in original pixels, each with its image row, share of the image, bin and fate.

    `bins` index `bin_names`, -1 for none; `fates` (Verdict or Fate) are what a build changes.
    """

    image_rows: NDArray[np.int64]
    boxes: NDArray[np.float64]
    shares: NDArray[np.float64]
    bins: NDArray[np.int64]
    bin_names: tuple[str, ...]
    fates: NDArray[np.uint8]

    def drop(self, where_N: NDArray[np.bool_], fate: Fate) -> None:
        """Give this fate to the rows that are still usable."""
        self.fates[where_N & (self.fates == USABLE)] = fate

    def drop_images(self, fates: Mapping[int, Fate]) -> None:
        """Give the usable rows of every image row its fate."""
        by_fate: dict[Fate, list[int]] = {}
        for image_row, fate in fates.items():
            by_fate.setdefault(fate, []).append(image_row)
        for fate, image_rows in by_fate.items():
            self.drop(np.isin(self.image_rows, image_rows), fate)

    def dropped(self) -> dict[str, int]:
        """Count of every reason that occurred."""
        counts = Counter(self.fates.tolist())
        reasons = [*Verdict, *Fate]
        return {fate.reason: counts[fate] for fate in reasons if fate not in (USABLE, Fate.KEPT) and counts[fate]}

    @property
    def unused(self) -> int:
        return int((self.fates == USABLE).sum())


def object_pool(instances: Instances, config: LocusConfig) -> CuePool:
    """The annotated boxes, judged against the configuration; row = annotation row."""
    return _judged_pool(instances, config, instances.image_rows, instances.boxes, instances.verdicts.copy())


def random_pool(instances: Instances, config: LocusConfig) -> CuePool:
    """Random boxes on the images of the file, enough of every size of the mix; sizes uniform in the log of the area."""
    rng = np.random.default_rng([config.seed, 1])
    usable_M = np.isin(instances.image_ids, _unique_ids(instances.image_ids))
    images = np.flatnonzero(usable_M)
    wanted = config.train_samples + config.validation_samples
    rounds = 2 * math.ceil(wanted / max(1, len(images))) + 1
    rows, boxes = [], []
    for name, size_bin in sorted(config.bins.items()):
        if config.mix.get(name, 0) > 0:
            rows_K = np.tile(images, rounds)
            rows.append(rows_K)
            boxes.append(_random_boxes(instances.image_sizes[rows_K], size_bin.low, size_bin.high, config.min_crop, rng))
    image_rows_N, boxes_N4 = np.concatenate(rows), np.concatenate(boxes)
    return _judged_pool(instances, config, image_rows_N, boxes_N4, np.full(len(boxes_N4), USABLE, dtype=np.uint8))


def quotas(samples: int, mix: Mapping[str, float]) -> dict[str, int]:
    """`samples` shared out by the mix, exactly: 5 at 70:30 is 4 and 1 (largest remainder; ties to the larger share)."""
    shares = {name: samples * share for name, share in mix.items() if share > 0}
    whole = {name: math.floor(share + 1e-9) for name, share in shares.items()}
    by_remainder = sorted(shares, key=lambda name: (whole[name] - shares[name], -shares[name], name))
    for name in by_remainder[: samples - sum(whole.values())]:
        whole[name] += 1
    return whole


def choose(
    pool: CuePool,
    order_N: NDArray[np.int64],
    wanted: Mapping[str, int],
    blocked_M: NDArray[np.bool_],
    used_M: NDArray[np.int64],
    max_per_image: int | None,
) -> NDArray[np.int64]:
    """The first usable rows of `order_N` that fill `wanted` by bin, in the order of the images.

    `blocked_M` images are passed over; `used_M` counts, by image, the cues that count against `max_per_image` already.
    """
    open_N = (pool.fates == USABLE) & ~blocked_M[pool.image_rows]
    missing = [wanted.get(name, 0) for name in pool.bin_names]
    used, chosen = used_M.tolist(), []
    rows = order_N[open_N[order_N]]
    for row, image, size_bin in zip(rows.tolist(), pool.image_rows[rows].tolist(), pool.bins[rows].tolist(), strict=True):
        if missing[size_bin] and (max_per_image is None or used[image] < max_per_image):
            missing[size_bin] -= 1
            used[image] += 1
            chosen.append(row)
    rows_K = np.asarray(chosen, dtype=np.int64)
    by_image_K: NDArray[np.int64] = rows_K[np.lexsort((rows_K, pool.image_rows[rows_K]))]
    return by_image_K


def _judged_pool(
    instances: Instances,
    config: LocusConfig,
    image_rows_N: NDArray[np.int64],
    boxes_N4: NDArray[np.float64],
    fates_N: NDArray[np.uint8],
) -> CuePool:
    sides_N2 = np.where((fates_N == USABLE)[:, None], boxes_N4[:, 2:] - boxes_N4[:, :2], 1.0)
    image_sides_N2 = instances.image_sizes[image_rows_N]
    shares_N = sides_N2.prod(axis=1) / image_sides_N2.prod(axis=1)
    names = tuple(config.bins)
    bins_N = np.full(len(shares_N), -1, dtype=np.int64)
    for index, size_bin in enumerate(config.bins.values()):
        below = (shares_N < size_bin.high) | (size_bin.high == 1)
        bins_N[(shares_N >= size_bin.low) & below] = index
    pool = CuePool(image_rows_N, boxes_N4, shares_N, bins_N, names, fates_N)
    excluded_M = np.isin(instances.image_ids, np.fromiter(config.excluded_images, dtype=np.int64))
    pool.drop(excluded_M[image_rows_N], Fate.EXCLUDED_IMAGE)
    pool.drop(sides_N2.max(axis=1) > _MAX_CUE_ASPECT_RATIO * sides_N2.min(axis=1), Fate.TOO_ELONGATED)
    pool.drop(image_sides_N2.max(axis=1) > MAX_ASPECT_RATIO * image_sides_N2.min(axis=1), Fate.TOO_ELONGATED)
    pool.drop(sides_N2.min(axis=1) < config.min_crop, Fate.BELOW_MIN_CROP)
    pool.drop(bins_N < 0, Fate.OUTSIDE_SIZE_BINS)
    mixed = [index for index, name in enumerate(names) if config.mix.get(name, 0) > 0]
    pool.drop(~np.isin(bins_N, mixed), Fate.BIN_NOT_IN_MIX)
    return pool


def _unique_ids(ids_M: NDArray[np.int64]) -> NDArray[np.int64]:
    unique, counts = np.unique(ids_M, return_counts=True)
    once: NDArray[np.int64] = unique[counts == 1]
    return once


def _random_boxes(
    sizes_K2: NDArray[np.int64], low: float, high: float, min_crop: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Whole-pixel boxes with an area share in [low, high) where `min_crop` and the image allow; the pool judges the rest."""
    areas_K = sizes_K2.prod(axis=1)
    least_K = np.minimum(np.maximum(low, min_crop**2 / areas_K), high)
    area_K = areas_K * np.exp(rng.uniform(np.log(least_K), math.log(high)))
    ratio_K = np.exp(rng.uniform(-math.log(_MAX_RANDOM_ASPECT_RATIO), math.log(_MAX_RANDOM_ASPECT_RATIO), len(areas_K)))
    width_K = np.clip(np.rint(np.sqrt(area_K * ratio_K)), 1, sizes_K2[:, 0])
    height_K = np.clip(np.rint(area_K / width_K), 1, sizes_K2[:, 1])
    x_K = np.floor(rng.random(len(areas_K)) * (sizes_K2[:, 0] - width_K + 1))
    y_K = np.floor(rng.random(len(areas_K)) * (sizes_K2[:, 1] - height_K + 1))
    return np.stack([x_K, y_K, x_K + width_K, y_K + height_K], axis=1)
