"""A synthetic video on disk with several annotated tracks, the target the most frequent: what TAO and BURST are made of.

    render_video ─► frames as JPEG files
                └─► LabelledVideo: objects, which of them is the target, which of them are annotated in which frame

Every object is painted in every frame; what makes one the target is in the annotations alone. The target is annotated
everywhere, each other object lacks a few frames, and never one that an episode of 1, 2 or 4 shots shows: there, the
supports' boxes are all that tells the target from the others. (With close-ups also what the camera looks at.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.photos import Split
from data.shapes import PaintedObject
from data.synthetic import scene_rng
from data.synthetic_video import VideoSpec, render_video, target_views

_SHOTS = (1, 2, 4)


@dataclass(frozen=True, slots=True)
class LabelledVideo:
    """`objects[f][o]` is object o in frame f; `annotated[o]` are the frames in which it has a box, in rising order.

    `target` is an index of objects, drawn for the video: neither colour, size, place nor order tells it.
    """

    objects: tuple[tuple[PaintedObject, ...], ...]
    target: int
    annotated: tuple[tuple[int, ...], ...]

    @property
    def count(self) -> int:
        """How many objects the video shows."""
        return len(self.objects[0])


@dataclass(frozen=True, slots=True)
class VideoFiles:
    """Where the frames of video `index` go, one path a frame."""

    index: int
    paths: tuple[Path, ...]


def episode_frames(frames: int) -> frozenset[int]:
    """Frames that an episode of 1, 2 or 4 shots shows: i·(N//K) for i < K, and the last. Of 9: 0, 2, 4, 6 and 8."""
    shown = {step * (frames // shots) for shots in _SHOTS for step in range(shots)}
    return frozenset(shown | {frames - 1})


def write_video(files: VideoFiles, *, spec: VideoSpec, seed: int, photographs: Split) -> LabelledVideo:
    """Render the video into its files; the answer depends on (seed, photographs, index) alone.

    Raises ValueError when the video is too short for a distractor to lack a frame that no episode shows.
    """
    free = sorted(set(range(spec.frames)) - episode_frames(spec.frames))
    if not free:
        raise ValueError(f"a video whose target is its most frequent track needs 6 frames or more, got {spec.frames}")
    files.paths[0].parent.mkdir(parents=True, exist_ok=True)
    whole = list(render_video(spec, seed, photographs, files.index))
    # Streams of their own: the roles do not follow from what was painted.
    rng, windows = scene_rng(seed, photographs, files.index).spawn(2)
    count = len(whole[0].objects)
    target = int(rng.integers(count))
    objects = []
    for path, frame in zip(files.paths, target_views(iter(whole), target, spec, windows), strict=True):
        frame.image.save(path, quality=spec.scene.jpeg_quality, subsampling=0)
        objects.append(frame.objects)
    annotated = tuple(_annotated(spec.frames, [] if o == target else free, rng) for o in range(count))
    in_sight = tuple(tuple(f for f in frames if objects[f][o].box.clip()) for o, frames in enumerate(annotated))
    return LabelledVideo(tuple(objects), target, in_sight)


def _annotated(frames: int, free: Sequence[int], rng: np.random.Generator) -> tuple[int, ...]:
    """All frames but a few of the free ones; but one at least, if any is free."""
    lacking = rng.permutation(free)[: rng.integers(1, len(free) + 1)].tolist() if free else []
    return tuple(frame for frame in range(frames) if frame not in lacking)
