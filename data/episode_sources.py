"""Opens a source of the FOCUS builder: its entries, unread, and what makes samples of them.

Most sources are datasets of tracks (data.readers); `iploc` is a list of episodes that others chose, taken as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data.focus_config import FocusConfig, Source
from data.focus_samples import EpisodeSource, Facts, MakeSettings, Outcome, TrackSource, encode, kind_of
from data.iploc import IplocRecord, UnusableRecord, iploc_records, make_sample
from data.readers import READERS

# In place of the builder's own frame rule and policy.
AS_LISTED = "as_listed"
LISTS = ("iploc",)


@dataclass(frozen=True, slots=True)
class OpenedSource:
    """`image_root` is the folder that its images lie in; `files` are read whole when it is opened.

    `left_out` counts, by reason, what its reader leaves out.
    """

    entries: Sequence[Any]
    episodes: EpisodeSource
    image_root: Path
    files: tuple[Path, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)


def open_source(source: Source, config: FocusConfig) -> OpenedSource:
    """Raises ValueError when the dataset is unknown or cannot be read at all."""
    if source.dataset in LISTS:
        return _open_list(source)
    if source.dataset not in READERS:
        raise ValueError(f"no reader of {source.dataset!r}; choose from {', '.join(sorted((*READERS, *LISTS)))}")
    tracks = READERS[source.dataset](source.root, source.split)
    episodes = TrackSource(source.split, config.shots, tracks.read)
    return OpenedSource(tracks.entries, episodes, source.root, tracks.files, tracks.left_out)


def _open_list(source: Source) -> OpenedSource:
    if source.images_root is None:
        raise ValueError(f"{source.root} is a list of images: it needs --images-root, the folder its paths start from")
    records = iploc_records(source.root, source.images_root)
    return OpenedSource(records, ListSource(source.split), source.images_root, (source.root,))


@dataclass(frozen=True, slots=True)
class ListSource:
    """A published list: one sample a record."""

    split: str

    @property
    def samples_per_entry(self) -> int:
        return 1

    def facts(self, entry: IplocRecord) -> Facts:
        kinds = (kind_of("iploc", len(entry.images) - 1),)
        return Facts(f"{Path(entry.list_name).stem}/{entry.index}", "iploc", entry.video, entry.element, kinds)

    def make(self, entry: IplocRecord, settings: MakeSettings) -> list[Outcome]:
        (kind,) = self.facts(entry).kinds
        sample = make_sample(entry)
        if isinstance(sample, UnusableRecord):
            return [Outcome(kind, None, "unusable_record", message=f"{entry.where}: {sample.reason}")]
        images = tuple(encode(Path(image.path or ""), (image.width, image.height), settings) for image in sample.images)
        stated = {"split": self.split, "frame_rule": AS_LISTED, "absence_policy": AS_LISTED}
        return [Outcome(kind, replace(sample, images=images, metadata={**sample.metadata, **stated}))]
