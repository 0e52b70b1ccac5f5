"""Configuration of data: every knob of the LOCUS cue-search builder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

CueSource = Literal["object", "random_crop"]
CueFormat = Literal["png", "jpeg"]
SceneStorage = Literal["path", "bytes"]


@dataclass(frozen=True, slots=True)
class SizeBin:
    """Boxes that cover a share of the image's area in [low, high); a `high` of 1 takes the whole image in too."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 1:
            raise ValueError(f"a size bin needs 0 <= low < high <= 1, got {self.low}:{self.high}")


def paper_bins() -> dict[str, SizeBin]:
    """The paper's sizes; nothing between 5 % and 10 %."""
    return {"tiny": SizeBin(0.0, 0.01), "small": SizeBin(0.01, 0.05), "large": SizeBin(0.10, 1.0)}


@dataclass(frozen=True, slots=True)
class LocusConfig:
    """The cue-search dataset of LOCUS; defaults are the paper's (its Table 9).

    `mix`              share of the samples of each size bin, summing to 1
    `source`           cues are annotated objects, or random crops of the same sizes
    `min_crop`         objects with a side under this many pixels are dropped; no cue is scaled below it
    `padding`, `scale` ranges of the context added on every side (share of the box's side) and of the cue's resize,
                       drawn for cues of `augmented_bins` only
    `max_per_image`    most samples of one image in a split; None for no bound
    `excluded_images`  image ids never used, e.g. those of RefCOCO/+/g when grounding is evaluated
    `scene_storage`    scenes by path, or their original bytes inside the dataset
    """

    train_samples: int = 99_500
    validation_samples: int = 500
    bins: Mapping[str, SizeBin] = field(default_factory=paper_bins)
    mix: Mapping[str, float] = field(default_factory=lambda: {"tiny": 0.7, "small": 0.3})
    source: CueSource = "object"
    min_crop: int = 16
    padding: tuple[float, float] = (0.0, 0.10)
    scale: tuple[float, float] = (0.8, 2.0)
    augmented_bins: tuple[str, ...] = ("tiny",)
    max_per_image: int | None = None
    excluded_images: frozenset[int] = frozenset()
    cue_format: CueFormat = "png"
    jpeg_quality: int = 95
    scene_storage: SceneStorage = "path"
    seed: int = 0

    def __post_init__(self) -> None:
        self._check_counts()
        self._check_bins()
        self._check_augmentation()

    def _check_counts(self) -> None:
        if self.train_samples < 0 or self.validation_samples < 0 or self.train_samples + self.validation_samples == 0:
            raise ValueError(
                f"nothing to build: {self.train_samples} train and {self.validation_samples} validation samples"
            )
        if self.max_per_image is not None and self.max_per_image < 1:
            raise ValueError(f"max_per_image must be at least 1, got {self.max_per_image}")
        if self.seed < 0:
            raise ValueError(f"the seed must not be negative, got {self.seed}")

    def _check_bins(self) -> None:
        for kind, names in (("mix", self.mix), ("augmented_bins", self.augmented_bins)):
            if unknown := sorted(set(names) - set(self.bins)):
                raise ValueError(f"{kind} names unknown size bins {unknown}; the bins are {sorted(self.bins)}")
        if any(not 0 <= share <= 1 for share in self.mix.values()) or abs(sum(self.mix.values()) - 1) > 1e-9:
            raise ValueError(f"the shares of the mix must be in [0, 1] and sum to 1, got {dict(self.mix)}")
        ordered = sorted(self.bins.items(), key=lambda item: item[1].low)
        for (name, one), (other, two) in pairwise(ordered):
            if two.low < one.high:
                raise ValueError(f"size bins {name} ({one.low}:{one.high}) and {other} ({two.low}:{two.high}) overlap")

    def _check_augmentation(self) -> None:
        if self.min_crop < 1:
            raise ValueError(f"min_crop must be at least 1 pixel, got {self.min_crop}")
        if not 0 <= self.padding[0] <= self.padding[1] < math.inf:
            raise ValueError(f"padding needs 0 <= low <= high, got {self.padding}")
        if not 0 < self.scale[0] <= self.scale[1] < math.inf:
            raise ValueError(f"scale needs 0 < low <= high, got {self.scale}")
        if not 1 <= self.jpeg_quality <= 100:
            raise ValueError(f"jpeg_quality must be in 1…100, got {self.jpeg_quality}")
        for name, value, known in (
            ("source", self.source, ("object", "random_crop")),
            ("cue_format", self.cue_format, ("png", "jpeg")),
            ("scene_storage", self.scene_storage, ("path", "bytes")),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
