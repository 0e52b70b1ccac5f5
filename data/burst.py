"""Reads PerMIRS: the videos of BURST in which the target has a sibling, another track of its own class.

    ROOT/annotations/val/all_classes.json           sequences (masks of every track, frame by frame), categories
    ROOT/frames/val/YFCC100M/v_0f3c…/frame0391.jpg  split / dataset / seq_name / one of annotated_image_paths

BURST is published as two archives whose place is the user's: ROOT/val/all_classes.json and ROOT/val/YFCC100M/… are found
too. Splits are train, val and test.

The target is the track with the most masks among those whose category another track of the video shares; of several, the
one with the smallest id (ids are numbers written as text: "9" is before "10"). All other tracks are distractors, siblings
first. Videos without siblings are no entries, nor are those from AVA, HACS and LaSOT, as in the script that made PerMIRS
(github.com/dvirsamuel/PDM, PerMIRS/dataset.py): LaSOT's are training videos elsewhere. Both are counted as dropped
(`from_AVA`, …, `without_sibling`); of what AVA, HACS and LaSOT hold, nothing but the name is looked at.

Boxes are those around the masks, half-open. Where a track has no mask, or one without pixels, it is absent.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.json_records import array, by_id, integer, is_file, mapping, read_json, text
from data.rle import mask_corners
from data.track import Corners, DamagedEntry, Track, TrackError, TrackFrame, TrackList

logger = logging.getLogger(__name__)

LEFT_OUT = ("AVA", "HACS", "LaSOT")
SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class _Sequence:
    """All that is said of one video; `masks[f]` are the texts of the masks in frame f by track id."""

    where: str
    folder: Path
    video: str
    size: tuple[int, int]
    images: tuple[str, ...]
    masks: tuple[dict[int, str], ...]
    categories: dict[int, str]

    def counts(self) -> Counter[int]:
        """How many masks every track has; a track without any is not in the video."""
        return Counter(track for masks in self.masks for track in masks)

    def target(self) -> int | None:
        """The most frequent track with a sibling, None where no track has one."""
        counts = self.counts()
        classes = Counter(self.categories[track] for track in counts)
        candidates = [track for track in counts if classes[self.categories[track]] > 1]
        return min(candidates, key=lambda track: (-counts[track], track)) if candidates else None


def read_permirs(root: Path, split: str) -> TrackList:
    """One track for every video with siblings, in the order of the file, which is parsed here, once.

    Raises TrackError when the file is missing or broken, repeats a video, and when it has no video with siblings. What is
    wrong with one video's record, its masks and its image files comes out when that video is read.
    """
    if split not in SPLITS:
        raise TrackError(f"BURST has no split {split!r}; choose from {', '.join(SPLITS)}")
    file, frames = _places(root, split)
    content = read_json(file)
    if isinstance(content, dict) and content.get("split", split) != split:
        raise TrackError(f"{file}: these are annotations of the split {content['split']!r}, not of {split!r}")
    names = {
        number: text(record, "name", f"{file}: category {number}")
        for number, record in by_id(array(content, "categories", str(file)), "category", file).items()
    }
    records = array(content, "sequences", str(file))
    foreign = Counter(record["dataset"] for record in records if _is_left_out(record))
    eligible = [
        _sequence_or_damage(record, f"{file}: sequence number {place}", frames, names)
        for place, record in enumerate(records)
        if not _is_left_out(record)
    ]
    _refuse_repeated([sequence for sequence in eligible if isinstance(sequence, _Sequence)], file)
    entries = [sequence for sequence in eligible if isinstance(sequence, DamagedEntry) or sequence.target() is not None]
    lone = len(eligible) - len(entries)
    account = (
        f"{file}: {len(records)} sequences, {foreign.total()} of them from {', '.join(LEFT_OUT)}, "
        f"{lone} others without two tracks of a class"
    )
    if not entries:
        raise TrackError(f"{account}: none is left for PerMIRS")
    logger.info("%s; %d tracks", account, len(entries))
    left_out = {f"from_{dataset}": count for dataset, count in sorted(foreign.items())}
    return TrackList(entries, _read_sequence, (file,), left_out | ({"without_sibling": lone} if lone else {}))


def _is_left_out(record: Any) -> bool:
    return isinstance(record, dict) and record.get("dataset") in LEFT_OUT


def _sequence_or_damage(record: Any, where: str, frames: Path, names: Mapping[int, str]) -> _Sequence | DamagedEntry:
    try:
        return _sequence(record, where, frames, names)
    except TrackError as error:
        return DamagedEntry(str(error))


def _places(root: Path, split: str) -> tuple[Path, Path]:
    """The annotation file and the folder that holds the split's datasets."""
    files = [root / "annotations" / split / "all_classes.json", root / split / "all_classes.json"]
    file = next(filter(Path.is_file, files), None)
    frames = next(filter(Path.is_dir, [root / "frames" / split, root / split]), None)
    if file is None or frames is None:
        raise TrackError(
            f"BURST's split {split!r} is not under {root}: expected the annotations in {files[0]} or {files[1]}, "
            f"and images under {root / 'frames' / split} or {root / split}"
        )
    return file, frames


def _sequence(record: Any, where: str, frames: Path, names: Mapping[int, str]) -> _Sequence:
    dataset, name = text(record, "dataset", where), text(record, "seq_name", where)
    where = f"{where} ({dataset}/{name})"
    images = array(record, "annotated_image_paths", where)
    segmentations = array(record, "segmentations", where)
    if len(images) != len(segmentations):
        raise TrackError(f"{where}: {len(images)} annotated_image_paths, but {len(segmentations)} segmentations")
    if not all(isinstance(image, str) and image for image in images) or len(set(images)) != len(images):
        raise TrackError(f"{where}: annotated_image_paths must be different texts")
    categories: dict[int, str] = {}
    for key, track in _track_ids(mapping(record, "track_category_ids", where), where).items():
        category = integer(record["track_category_ids"], key, where)
        if category not in names:
            raise TrackError(f"{where}: track {track} is of category {category}, which does not exist")
        categories[track] = names[category]
    return _Sequence(
        where=where,
        folder=frames / dataset / name,
        video=f"{frames.name}/{dataset}/{name}",
        size=(integer(record, "width", where, least=1), integer(record, "height", where, least=1)),
        images=tuple(images),
        masks=tuple(_masks(masks, f"{where}: frame {f}", categories) for f, masks in enumerate(segmentations)),
        categories=categories,
    )


def _masks(segmentation: Any, where: str, categories: Mapping[int, str]) -> dict[int, str]:
    """The texts of one frame's masks by track id."""
    masks: dict[int, str] = {}
    for key, track in _track_ids(segmentation, where).items():
        if track not in categories:
            raise TrackError(f"{where}: track {track} is not in track_category_ids")
        masks[track] = text(segmentation[key], "rle", f"{where}, track {track}")
    return masks


def _track_ids(record: Any, where: str) -> dict[str, int]:
    """The track number that every key of the record means."""
    if not isinstance(record, dict):
        raise TrackError(f"{where}: expected an object with a key for every track, got {type(record).__name__}")
    if strange := [key for key in record if not (key.isascii() and key.isdigit())]:
        raise TrackError(f"{where}: a track id must be a number, got {strange[0]!r}")
    tracks = {key: int(key) for key in record}
    if len(set(tracks.values())) < len(tracks):
        raise TrackError(f"{where}: two track ids are the same number: {', '.join(record)}")
    return tracks


def _refuse_repeated(sequences: list[_Sequence], file: Path) -> None:
    repeated = [video for video, count in Counter(sequence.video for sequence in sequences).items() if count > 1]
    if repeated:
        raise TrackError(f"{file}: the sequence {repeated[0]} comes twice")


def _read_sequence(sequence: _Sequence | DamagedEntry) -> Track:
    if isinstance(sequence, DamagedEntry):
        raise TrackError(sequence.message)
    target, counts = sequence.target(), sequence.counts()
    assert target is not None, "sequences without a target are no entries"
    category = sequence.categories[target]
    siblings_first = sorted(
        (track for track in counts if track != target), key=lambda track: (sequence.categories[track] != category, track)
    )
    return Track(
        id=f"{sequence.video}/{target}",
        source="permirs",
        video=sequence.video,
        category=category,
        frames=tuple(_frame(sequence, f, target, siblings_first) for f in range(len(sequence.images))),
        metadata={
            "track": target,
            "annotated_frames": counts[target],
            "distractors": [
                {"track": track, "category": sequence.categories[track], "annotated_frames": counts[track]}
                for track in siblings_first
            ],
        },
    )


def _frame(sequence: _Sequence, number: int, target: int, others: list[int]) -> TrackFrame:
    path = sequence.folder / sequence.images[number]
    if not is_file(path):
        raise TrackError(f"{path} is missing; {sequence.where} lists it")
    boxes = {track: _box(sequence, number, track) for track in sequence.masks[number]}
    corners = boxes.get(target)
    return TrackFrame(
        path=path,
        corners=corners,
        absence="absent" if corners is None else None,
        size=sequence.size,
        others=tuple(box for track in others if (box := boxes.get(track)) is not None),
    )


def _box(sequence: _Sequence, number: int, track: int) -> Corners | None:
    try:
        return mask_corners(sequence.masks[number][track], *sequence.size)
    except ValueError as error:
        raise TrackError(f"{sequence.where}: frame {number}, track {track}: {error}") from error
