"""Makes the samples of a track: chooses frames, opens their images, clips the boxes. What FOCUS's worker processes run.

    entry ─► facts: id, video, category (before anything is decided; no image is opened)
    entry ─► make: one outcome a shot count, its samples, or why there is none

A damaged track gives no sample at all, whatever its shot counts: what is shown at 1, 2 and 4 shots stays the same tracks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pyarrow as pa

from data.box import Box, Frame
from data.episodes import Episode, choose_episode, clip_corners, has_area
from data.focus_config import FocusConfig
from data.image_file import ImageFileError, ImageProblem, check_image, image_size
from data.prompts import focus_prompt
from data.sample import EncodedImage, Sample
from data.store import samples_to_table
from data.track import Track, TrackError

Result = TypeVar("Result")

DAMAGED = "damaged"


@dataclass(frozen=True, slots=True)
class Facts:
    """What decides where a track goes. `kinds` names the samples it will make, one each, such as "tao, 4-shot"."""

    id: str
    source: str
    video: str
    category: str
    kinds: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One sample that was made, `moved` of its frames replaced; or the reason why not, in a word and perhaps a sentence."""

    kind: str
    sample: Sample | None
    dropped: str | None = None
    message: str | None = None
    moved: int = 0


@dataclass(frozen=True, slots=True)
class MakeSettings:
    """What is the same for every track of a build."""

    config: FocusConfig
    image_root: Path


class EpisodeSource(Protocol):
    """Where episodes come from. It pickles; `facts` and `make` raise TrackError or ImageFileError for a damaged entry."""

    @property
    def samples_per_entry(self) -> int: ...
    def facts(self, entry: Any) -> Facts: ...
    def make(self, entry: Any, settings: MakeSettings) -> list[Outcome]: ...


@dataclass(frozen=True, slots=True)
class TrackSource:
    """A dataset of tracks: `read` gives the track of an entry."""

    split: str
    shots: tuple[int, ...]
    read: Callable[[Any], Track]

    @property
    def samples_per_entry(self) -> int:
        return len(self.shots)

    def facts(self, entry: Any) -> Facts:
        track = self.read(entry)
        kinds = tuple(kind_of(track.source, shots) for shots in self.shots)
        return Facts(track.id, track.source, track.video, track.category, kinds)

    def make(self, entry: Any, settings: MakeSettings) -> list[Outcome]:
        images = _TrackImages(self.read(entry), settings)
        return [_make_episode(images, self.split, shots, settings.config) for shots in self.shots]


def kind_of(source: str, shots: int) -> str:
    return f"{source}, {shots}-shot"


def _make_episode(images: _TrackImages, split: str, shots: int, config: FocusConfig) -> Outcome:
    track = images.track
    kind = kind_of(track.source, shots)
    episode = choose_episode(track, shots, config.frame_rule, config.absence_policy, images.box)
    if isinstance(episode, str):
        return Outcome(kind, None, episode)
    *supports, query = episode.frames
    target = images.box(query)
    support_boxes = tuple(box for box in map(images.box, supports) if box is not None)
    assert target is not None and len(support_boxes) == shots, "a policy chose a frame without a usable box"
    encoded = tuple(map(images.encoded, episode.frames))
    others = [clip_corners(corners, encoded[-1].frame) for corners in track.frames[query].others]
    distractors = tuple(box for box in others if box is not None)
    sample = Sample(
        id=f"{track.source}/{track.id}@{shots}",
        source=track.source,
        images=encoded,
        prompt=focus_prompt(support_boxes),
        target=target,
        target_image=shots,
        distractors=distractors,
        metadata=_metadata(track, split, shots, episode, config) | {"distractors": len(distractors)},
    )
    return Outcome(kind, sample, moved=episode.moved)


def _metadata(track: Track, split: str, shots: int, episode: Episode, config: FocusConfig) -> dict[str, Any]:
    """Everything that the model does not see, the category above all."""
    return {
        "dataset": track.source,
        "split": split,
        "track": track.id,
        "video": track.video,
        "category": track.category,
        "shots": shots,
        "frame_rule": config.frame_rule,
        "absence_policy": config.absence_policy,
        "frames": list(episode.frames),
        "wanted_frames": list(episode.wanted),
        "moved_frames": episode.moved,
        "absences": [track.frames[index].absence for index in episode.frames],
        "annotation": dict(track.metadata),
    }


class _TrackImages:
    """The images of a track, each opened when it is asked for, once. Raises ImageFileError when one cannot serve."""

    def __init__(self, track: Track, settings: MakeSettings) -> None:
        self.track = track
        self.settings = settings
        self._boxes: dict[int, Box | None] = {}
        self._encoded: dict[int, EncodedImage] = {}

    def box(self, index: int) -> Box | None:
        """The target in frame `index`, clipped to the image; None where nothing of it is left."""
        if index not in self._boxes:
            frame = self.track.frames[index]
            if frame.corners is None or not has_area(frame.corners):
                self._boxes[index] = None
            else:
                # The header is enough here: of the frames that are looked at, not all are chosen.
                width, height = frame.size or image_size(frame.path)
                self._boxes[index] = clip_corners(frame.corners, Frame.original(width, height))
        return self._boxes[index]

    def encoded(self, index: int) -> EncodedImage:
        """The image of frame `index`, decoded once to be sure of it."""
        if index not in self._encoded:
            frame = self.track.frames[index]
            self._encoded[index] = encode(frame.path, frame.size, self.settings)
        return self._encoded[index]


def encode(path: Path, size: tuple[int, int] | None, settings: MakeSettings) -> EncodedImage:
    """An image as the dataset stores it: the bytes of its file as they are, or its path from the image root."""
    content, (width, height) = check_image(path, size)
    if settings.config.image_storage == "bytes":
        return EncodedImage(width, height, encoded=content)
    return EncodedImage(width, height, path=os.path.relpath(path, settings.image_root))


@dataclass(frozen=True, slots=True)
class EntryPlan:
    """An entry that is wanted, and the output split it goes to."""

    source: int
    entry: Any
    split: str
    facts: Facts


@dataclass(frozen=True, slots=True)
class MadeChunk:
    """Rows of data.store.SCHEMA by output split, and what became of every plan: its outcomes, without the samples."""

    rows: dict[str, pa.Table]
    outcomes: tuple[tuple[Outcome, ...], ...]
    damage: tuple[Damage, ...]


@dataclass(frozen=True, slots=True)
class Damage:
    """A track that cannot be used: what is wrong in words, and in one word when it is an image."""

    message: str
    problem: ImageProblem | None


def survey(sources: Sequence[EpisodeSource], entries: Sequence[tuple[int, Any]]) -> list[Facts | Damage]:
    """The facts of entries (number of the source, entry), in order."""
    return [_or_damage(partial(sources[source].facts, entry)) for source, entry in entries]


def make(sources: Sequence[EpisodeSource], settings: MakeSettings, plans: Sequence[EntryPlan]) -> MadeChunk:
    """The samples of the planned entries."""
    samples: dict[str, list[Sample]] = {}
    outcomes: list[tuple[Outcome, ...]] = []
    damage: list[Damage] = []
    for plan in plans:
        made = _or_damage(partial(sources[plan.source].make, plan.entry, settings))
        if isinstance(made, Damage):
            damage.append(made)
            made = [Outcome(kind, None, DAMAGED) for kind in plan.facts.kinds]
        outcomes.append(tuple(replace(outcome, sample=None) for outcome in made))
        samples.setdefault(plan.split, []).extend(outcome.sample for outcome in made if outcome.sample is not None)
    rows = {split: samples_to_table(each) for split, each in samples.items()}
    return MadeChunk(rows, tuple(outcomes), tuple(damage))


def _or_damage(work: Callable[[], Result]) -> Result | Damage:
    try:
        return work()
    except ImageFileError as error:
        return Damage(str(error), error.problem)
    except TrackError as error:
        return Damage(str(error), None)
