"""Track: one annotated object through the frames of a video (or an album), as the readers of FOCUS's datasets give it.

    reader(root, split) ─► Track(id, source, category, frames) ─► episodes choose frames, open images, clip boxes ─► Sample

A reader states what the annotation files state, converted to one convention and nothing else: corners are 0-based,
half-open, in original pixels, possibly outside of the image; whether the target can be seen is a word, never a missing box.
Images are not opened here: a track names their paths.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

# Why a target is not to be seen in a frame, in the words of the datasets' own flags.
Absence = Literal["absent", "out_of_view", "full_occlusion", "unannotated"]
Corners = tuple[float, float, float, float]


class TrackError(ValueError):
    """A track whose files are damaged or contradict each other; names the file, the line if there is one, and the fault."""


@dataclass(frozen=True, slots=True)
class TrackFrame:
    """One frame: its image file and what the annotation says of the target there.

    `corners` (x1, y1, x2, y2), 0-based, half-open, original pixels, neither clipped nor checked for area; None where the
    files give no box. `absence` is None where the target is visible; a flagged frame may still carry corners. `size` is
    the annotation's (width, height), None where the format has none. `others` are boxes of other objects in this frame.
    """

    path: Path
    corners: Corners | None
    absence: Absence | None = None
    size: tuple[int, int] | None = None
    others: tuple[Corners, ...] = ()

    def __post_init__(self) -> None:
        for corners in (self.corners, *self.others):
            if corners is not None and not all(math.isfinite(value) for value in corners):
                raise TrackError(f"{self.path}: a box must be finite, got {corners}")


@dataclass(frozen=True, slots=True)
class Track:
    """The target of one video. `id` is unique within `source`; `video` groups tracks of the same frames."""

    id: str
    source: str
    video: str
    category: str
    frames: tuple[TrackFrame, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)


# A source of tracks: how many there are is known at once, each is read where it is needed (a worker process).
# `Entry` values are picklable; reading one raises TrackError when its files are damaged.
@dataclass(frozen=True, slots=True)
class TrackList:
    """The tracks of a split, unread: `read(entries[i])` reads one. `read` is a module-level function, so that it pickles.

    `files` were read whole for the list. `left_out` counts what the dataset has and its rule leaves out, by reason.
    """

    entries: Sequence[Any]
    read: Callable[[Any], Track]
    files: tuple[Path, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DamagedEntry:
    """An entry of which the annotation file that all entries share says something wrong: reading it raises `message`."""

    message: str


Reader = Callable[[Path, str], TrackList]
