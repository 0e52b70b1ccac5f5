"""Configuration of the FOCUS builder: where tracks come from, which frames make an episode, and who goes to which split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data.episodes import ABSENCE_POLICIES, FRAME_RULES

ImageStorage = Literal["path", "bytes"]
OutputSplit = Literal["train", "validation"]
OnOverlap = Literal["fail", "drop"]


@dataclass(frozen=True, slots=True)
class Source:
    """A split of an official dataset in the folder `root`; for `iploc`, the list `root` of images under `images_root`."""

    dataset: str
    split: str
    root: Path
    images_root: Path | None = None

    @property
    def name(self) -> str:
        return f"{self.dataset}:{self.split}"


@dataclass(frozen=True, slots=True)
class FocusConfig:
    """The in-context episodes of FOCUS. Lists (`iploc`) bring their own shots and frames.

    `shots`                  supports of an episode; with several, every track gives one episode of each
    `frame_rule`             where the frames stand (data.episodes.FRAME_RULES)
    `absence_policy`         what becomes of frames that do not show the target (data.episodes.ABSENCE_POLICIES)
    `image_storage`          images by path, or the bytes of their files inside the dataset
    `output_split`           the split written; None: a source's `train` to train, any other to validation
    `validation_fraction`    share of each training source's videos that goes to validation instead, chosen by `seed`
    `categories`             only these, None for all; `excluded_categories` never. A wanted name that no track has is an
                             error, an excluded one is reported
    `disjoint_from`          built datasets that may share no category and no video with this one; `on_overlap` says
                             whether a shared one stops the build or drops its tracks
    `strict`                 the first damaged track stops the build
    """

    shots: tuple[int, ...] = (4,)
    frame_rule: str = "iploc"
    absence_policy: str = "skip"
    image_storage: ImageStorage = "path"
    output_split: OutputSplit | None = None
    validation_fraction: float = 0.0
    categories: frozenset[str] | None = None
    excluded_categories: frozenset[str] = frozenset()
    disjoint_from: tuple[Path, ...] = ()
    on_overlap: OnOverlap = "fail"
    strict: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.shots or any(shots < 1 for shots in self.shots) or len(set(self.shots)) < len(self.shots):
            raise ValueError(f"shots must be different numbers of at least 1, such as 1,2,4; got {self.shots}")
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"validation_fraction must be in [0, 1), got {self.validation_fraction}")
        if self.seed < 0:
            raise ValueError(f"the seed must not be negative, got {self.seed}")
        for name, value, known in (
            ("frame_rule", self.frame_rule, FRAME_RULES),
            ("absence_policy", self.absence_policy, ABSENCE_POLICIES),
            ("image_storage", self.image_storage, ("path", "bytes")),
            ("output_split", self.output_split, (None, "train", "validation")),
            ("on_overlap", self.on_overlap, ("fail", "drop")),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(map(str, known))}, got {value!r}")
