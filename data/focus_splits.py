"""Which output split every track goes to, and which tracks stay out: categories, disjointness, validation videos.

Decided from the facts of all tracks, before any image is opened. Categories are compared without case, `_` as a blank.
"""

from __future__ import annotations

import difflib
import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from data.focus_config import FocusConfig, OutputSplit, Source
from data.focus_samples import Facts

# The names that an error lists.
_NAMED = 10
# Datasets made of another's videos, under its names for them: BURST annotates TAO's.
_VIDEOS_OF = {"permirs": "tao"}


@dataclass(frozen=True, slots=True)
class Located:
    """The facts of a track, and the number of the source that it comes from."""

    source: int
    facts: Facts


@dataclass(frozen=True, slots=True)
class Contents:
    """What a built dataset shows: the categories of its targets, and its videos by `video_key`."""

    directory: Path
    categories: frozenset[str]
    videos: frozenset[tuple[str, str]]


def normal(category: str) -> str:
    return " ".join(category.casefold().replace("_", " ").split())


def video_key(source: str, video: str) -> tuple[str, str]:
    """What two tracks of the same frames share, also where they come from different datasets."""
    return _VIDEOS_OF.get(source, source), video


def read_contents(directory: Path) -> Contents:
    """From the samples of all its splits. Raises ValueError when it is no dataset, or its samples name no category."""
    paths = sorted(directory.glob("*.parquet"))
    if not paths:
        raise ValueError(f"{directory} is not a dataset folder: it has no Parquet files (python -m data.build makes them)")
    categories: set[str] = set()
    videos: set[tuple[str, str]] = set()
    for path in paths:
        for row in pq.read_table(path, columns=["id", "source", "metadata"]).to_pylist():
            metadata = json.loads(row["metadata"])
            if "category" not in metadata:
                raise ValueError(f"sample {row['id']} of {directory} names no category: its categories cannot be compared")
            categories.add(normal(metadata["category"]))
            if "video" in metadata:
                videos.add(video_key(row["source"], metadata["video"]))
    return Contents(directory, frozenset(categories), frozenset(videos))


def exclusions(tracks: Sequence[Located], config: FocusConfig) -> list[str | None]:
    """Why each track stays out, None for those that stay in.

    Raises ValueError for a wanted category that no track has, and, naming what is shared, when an overlap with
    `disjoint_from` is to fail.
    """
    _refuse_unknown(config.categories or (), tracks)
    wanted = None if config.categories is None else {normal(name) for name in config.categories}
    unwanted = {normal(name) for name in config.excluded_categories}
    reasons: list[str | None] = []
    for track in tracks:
        category = normal(track.facts.category)
        out = category in unwanted or (wanted is not None and category not in wanted)
        reasons.append("category_not_wanted" if out else None)
    for directory in config.disjoint_from:
        contents = read_contents(directory)
        if config.on_overlap == "fail":
            _refuse_overlap([track for track, reason in zip(tracks, reasons, strict=True) if reason is None], contents)
        reasons = [reason or _overlap(track, contents) for track, reason in zip(tracks, reasons, strict=True)]
    return reasons


def unmatched_categories(names: Iterable[str], tracks: Iterable[Located]) -> list[str]:
    """Those of the names that no track has."""
    there = {normal(track.facts.category) for track in tracks}
    return sorted(name for name in names if normal(name) not in there)


def _refuse_unknown(names: Iterable[str], tracks: Sequence[Located]) -> None:
    unmatched = unmatched_categories(names, tracks)
    if unmatched:
        there = {normal(track.facts.category): track.facts.category for track in tracks}
        near = difflib.get_close_matches(normal(unmatched[0]), there, n=3)
        hint = f"; nearest are {', '.join(there[name] for name in near)}" if near else ""
        raise ValueError(f"no track that can be read is of the wanted categories {_some(unmatched)}{hint}")


def output_splits(tracks: Sequence[Located], sources: Sequence[Source], config: FocusConfig) -> list[OutputSplit]:
    """The split of every track. Raises ValueError when a track comes twice, or a video would serve both splits."""
    _refuse_repeated(tracks, sources)
    if config.validation_fraction and all(source_split(source, config) != "train" for source in sources):
        names = ", ".join(source.name for source in sources)
        raise ValueError(
            f"validation_fraction is taken from training videos, and {names} has none (--as train makes it one)"
        )
    validation = set().union(*(_validation_videos(tracks, number, sources, config) for number in range(len(sources))))
    splits: list[OutputSplit] = []
    for track in tracks:
        moved = (track.source, track.facts.video) in validation
        splits.append("validation" if moved else source_split(sources[track.source], config))
    _refuse_shared_videos(tracks, splits)
    return splits


def source_split(source: Source, config: FocusConfig) -> OutputSplit:
    """Where the tracks of a source go, but for the validation videos taken out of it."""
    if config.output_split is not None:
        return config.output_split
    return "train" if source.split == "train" else "validation"


def _validation_videos(
    tracks: Sequence[Located], number: int, sources: Sequence[Source], config: FocusConfig
) -> set[tuple[int, str]]:
    """`validation_fraction` of the videos of a training source, one at least, whatever other sources there are."""
    source = sources[number]
    videos = sorted({track.facts.video for track in tracks if track.source == number})
    if config.validation_fraction == 0 or source_split(source, config) != "train" or not videos:
        return set()
    count = max(1, round(config.validation_fraction * len(videos)))
    if count == len(videos):
        raise ValueError(
            f"{source.name} has {len(videos)} videos: {config.validation_fraction:.0%} of them for validation leaves none"
        )
    rng = np.random.default_rng([config.seed, zlib.crc32(source.name.encode())])
    return {(number, videos[place]) for place in rng.permutation(len(videos))[:count]}


def _overlap(track: Located, contents: Contents) -> str | None:
    if normal(track.facts.category) in contents.categories:
        return "category_overlap"
    return "video_overlap" if video_key(track.facts.source, track.facts.video) in contents.videos else None


def _refuse_overlap(tracks: Iterable[Located], contents: Contents) -> None:
    facts = [track.facts for track in tracks]
    categories = {each.category for each in facts if normal(each.category) in contents.categories}
    videos = {each.video for each in facts if video_key(each.source, each.video) in contents.videos}
    if categories or videos:
        shared = [f"{len(names)} {what} ({_some(names)})" for what, names in _named(categories, videos) if names]
        raise ValueError(
            f"not disjoint from {contents.directory}: it shares {' and '.join(shared)}; "
            "exclude them (--exclude-categories) or drop their tracks (--on-overlap drop)"
        )


def _named(categories: set[str], videos: set[str]) -> list[tuple[str, set[str]]]:
    return [("categories", categories), ("videos", videos)]


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:_NAMED]) + (", …" if len(ordered) > _NAMED else "")


def _refuse_repeated(tracks: Sequence[Located], sources: Sequence[Source]) -> None:
    seen: dict[tuple[str, str], int] = {}
    for track in tracks:
        key = (track.facts.source, track.facts.id)
        if key in seen:
            one, other = sources[seen[key]].name, sources[track.source].name
            raise ValueError(f"track {track.facts.id} comes twice, from {one} and {other}: a dataset needs unique ids")
        seen[key] = track.source


def _refuse_shared_videos(tracks: Sequence[Located], splits: Sequence[OutputSplit]) -> None:
    seen: dict[tuple[str, str], OutputSplit] = {}
    for track, split in zip(tracks, splits, strict=True):
        key = video_key(track.facts.source, track.facts.video)
        if seen.setdefault(key, split) != split:
            raise ValueError(
                f"video {track.facts.video} of {track.facts.source} would serve both splits, train and validation"
            )
