"""Synthetic videos for in-context localization: the same few objects in every frame, each frame elsewhere.

All objects of a video have one shape and differ in colour (and pattern), so that nothing but the supports' boxes says which
of them is meant. Frame sizes, photographs and painting are those of `data.synthetic`; every dataset's generator writes
these videos in its own layout. Video i depends on (seed, split, i) alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from data.photos import Split, load_photographs
from data.shapes import PaintedObject, paint
from data.synthetic import SceneSpec, background, choose_objects, place_objects, scene_rng


@dataclass(frozen=True)
class VideoSpec:
    """What videos look like: `frames` frames of `scene`. With `still` the background is one window throughout."""

    frames: int = 9
    scene: SceneSpec = field(default_factory=SceneSpec)
    still: bool = False

    def __post_init__(self) -> None:
        if self.frames < 2:
            raise ValueError(f"a video needs a support and a query: at least 2 frames, got {self.frames}")


@dataclass(frozen=True)
class VideoFrame:
    """A frame; `objects` are in the same order in every frame of the video. The first is the target."""

    image: Image.Image
    objects: tuple[PaintedObject, ...]


def render_video(spec: VideoSpec, seed: int, split: Split, index: int) -> Iterator[VideoFrame]:
    """The frames of video `index`, one at a time."""
    rng = scene_rng(seed, split, index)
    cast = choose_objects(spec.scene, rng)
    photographs = load_photographs(split)
    scene = background(spec.scene, photographs, rng)
    for _ in range(spec.frames):
        if not spec.still:
            scene = background(spec.scene, photographs, rng)
        canvas = np.array(scene, dtype=np.float32)
        objects = place_objects(spec.scene, cast, rng)
        for painted in objects:
            paint(canvas, painted, rng)
        yield VideoFrame(Image.fromarray(np.clip(canvas, 0, 255).round().astype(np.uint8)), tuple(objects))
