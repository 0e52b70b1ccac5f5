"""What an evaluation asks: one set of samples a dataset and shot count, taken as they are or derived from more shots.

    dataset folder ─► one pass: source and supports of every sample ─► EvaluationSet(TAO, 1) (TAO, 2) (TAO, 4) (GOT, 1) …

A k-shot sample is derived from a K-shot one by keeping supports i·(K // k), i < k: the first, and on at equal intervals,
which is the rule by which episodes are built. Query, target and distractors stay.

How many shots a sample has is what it says itself (metadata["shots"]): a published list's 4-shot record of which one support
has no box belongs to the 4-shot set. Without a word it is its support boxes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import overload

from data.build_report import REPORT_NAME, Filled
from data.episode_sources import LISTS
from data.focus_samples import kind_of
from data.sample import ImagePart, PromptPart, Sample, SupportBoxPart, TextPart
from data.store import SampleStore

DEFAULT_SHOTS = (1, 2, 4)
# Metadata with one value an image of the prompt.
_OF_FRAMES = ("frames", "wanted_frames", "absences")


@dataclass(frozen=True)
class EvaluationSet(Sequence[Sample]):
    """Samples of one dataset at one shot count, read and derived when they are asked for.

    `shots` is None for samples without supports (LOCUS). `derived_from` is the shot count that the dataset has instead,
    None where the samples are its own.
    """

    dataset: str
    folder: Path
    shots: int | None
    derived_from: int | None
    max_images: int
    store: SampleStore
    rows: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        sample = self.store[self.rows[index]]
        if self.shots is None or self.derived_from is None:
            return sample
        return with_shots(sample, min(self.shots, support_count(sample)))

    @property
    def title(self) -> str:
        return self.dataset if self.shots is None else f"{self.dataset} {self.shots}-shot"

    def listed(self) -> Filled | None:
        """Of a published list: its records, and those of them that are samples, by the account of the build.

        None for other datasets, and where the folder has no account of them.
        """
        report = self.folder / REPORT_NAME
        source = self.store[self.rows[0]].source
        if source not in LISTS or not report.is_file():
            return None
        kinds = json.loads(report.read_text(encoding="utf-8"))["splits"].get(self.store.split, {})
        counts = kinds.get(kind_of(source, self.derived_from or self.shots or 0))
        return None if counts is None else Filled(**counts)


@dataclass(frozen=True)
class _Found:
    """What one pass learns about a sample."""

    row: int
    source: str
    shots: int
    images: int


def support_count(sample: Sample) -> int:
    return sum(isinstance(part, SupportBoxPart) for part in sample.prompt)


def shot_count(sample: Sample) -> int:
    """The shots that the sample says it has, as many as support boxes unless it lacks some; 0 without supports."""
    supports = support_count(sample)
    return int(sample.metadata.get("shots", supports)) if supports else 0


def with_shots(sample: Sample, shots: int) -> Sample:
    """The sample with `shots` of its supports. Raises ValueError when it has fewer."""
    boxes = [part.index for part in sample.prompt if isinstance(part, SupportBoxPart)]
    if not 1 <= shots <= len(boxes):
        raise ValueError(f"sample {sample.id} has {len(boxes)} supports; {shots} cannot be taken from them")
    kept = {boxes[place * (len(boxes) // shots)] for place in range(shots)}
    dropped = set(boxes) - kept
    images = [index for index in range(len(sample.images)) if index not in dropped]
    renumbered = {old: new for new, old in enumerate(images)}
    metadata = {
        name: [value[index] for index in images] if name in _OF_FRAMES else value
        for name, value in sample.metadata.items()
        if name != "moved_frames"
    }
    return replace(
        sample,
        images=tuple(sample.images[index] for index in images),
        prompt=tuple(moved for part in sample.prompt if (moved := _renumber(part, renumbered)) is not None),
        target_image=renumbered[sample.target_image],
        metadata=metadata | {"shots": shots, "derived_from_shots": len(boxes)},
    )


def _renumber(part: PromptPart, renumbered: Mapping[int, int]) -> PromptPart | None:
    """The part with its image's new number; None where that image is gone."""
    match part:
        case TextPart():
            return part
        case ImagePart(index):
            return ImagePart(renumbered[index]) if index in renumbered else None
        case SupportBoxPart(index, box):
            return SupportBoxPart(renumbered[index], box) if index in renumbered else None


def evaluation_sets(
    folders: Iterable[tuple[str | None, str]], split: str, shots: tuple[int, ...] | None, limit: int | None
) -> list[EvaluationSet]:
    """All sets of the folders, each named as given, or where that is None by the source of its samples.

    Raises ValueError for an empty split, and for a shot count that a dataset cannot give.
    """
    sets: list[EvaluationSet] = []
    for name, folder in folders:
        store = SampleStore(folder, split)
        found = [_Found(row, sample.source, shot_count(sample), len(sample.images)) for row, sample in enumerate(store)]
        if not found:
            raise ValueError(f"dataset folder {folder} has no sample in split {split!r}")
        for source in [name] if name is not None else dict.fromkeys(item.source for item in found):
            own = [item for item in found if name is not None or item.source == source]
            sets += _sets_of(str(source), Path(folder), store, own, shots, limit)
    return sets


def _sets_of(
    name: str, folder: Path, store: SampleStore, found: Sequence[_Found], shots: tuple[int, ...] | None, limit: int | None
) -> list[EvaluationSet]:
    counts = sorted({item.shots for item in found if item.shots})
    if shots and (not counts or max(shots) > counts[-1]):
        has = f"samples of at most {counts[-1]} shots" if counts else "samples without supports; leave shots= out"
        raise ValueError(f"dataset {name} ({folder}) cannot give {max(shots)} shots: it has {has}")
    wanted = [count for count in shots or DEFAULT_SHOTS if counts and count <= counts[-1]]
    plan: list[tuple[int | None, int]] = [(count, count if count in counts else counts[-1]) for count in wanted]
    if not shots and any(item.shots == 0 for item in found):
        plan.append((None, 0))
    sets = []
    for count, taken_from in plan:
        own = [item for item in found if item.shots == taken_from][:limit]
        derived_from = taken_from if count is not None and count != taken_from else None
        images = max(item.images for item in own)
        sets.append(EvaluationSet(name, folder, count, derived_from, images, store, tuple(item.row for item in own)))
    return sets
