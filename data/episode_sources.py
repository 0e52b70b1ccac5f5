"""Opens a source of the FOCUS builder: its entries, unread, and what makes samples of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.focus_config import FocusConfig, Source
from data.focus_samples import EpisodeSource, TrackSource
from data.readers import READERS


@dataclass(frozen=True, slots=True)
class OpenedSource:
    """`image_root` is the folder that its images lie in; `files` are read whole when it is opened."""

    entries: Sequence[Any]
    episodes: EpisodeSource
    image_root: Path
    files: tuple[Path, ...] = ()


def open_source(source: Source, config: FocusConfig) -> OpenedSource:
    """Raises ValueError when the dataset is unknown or cannot be read at all."""
    if source.dataset not in READERS:
        raise ValueError(f"no reader of {source.dataset!r}; choose from {', '.join(sorted(READERS))}")
    tracks = READERS[source.dataset](source.root, source.split)
    return OpenedSource(tracks.entries, TrackSource(source.split, config.shots, tracks.read), source.root)
