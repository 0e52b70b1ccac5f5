"""Synthetic videos for in-context localization: the same few objects in every frame, each frame elsewhere.

All objects of a video have one shape and differ in colour (and pattern), so that only the supports say which of them is
meant. Frame sizes, photographs and painting are those of `data.synthetic`; every dataset's generator writes these videos in
its own layout, and draws which object is the target. Video i depends on (seed, split, i) alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from data.box import Box
from data.photos import Split, load_photographs
from data.shapes import PaintedObject, paint
from data.synthetic import SceneSpec, background, choose_objects, place_objects, scene_rng


@dataclass(frozen=True)
class VideoSpec:
    """What videos look like: `frames` frames of `scene`. With `still` the background is one window throughout.

    With `close_ups` every frame but the last is a close view of the target, whose longer side takes a share of the frame
    drawn from this range: other objects are then cut, or out of sight.
    """

    frames: int = 9
    scene: SceneSpec = field(default_factory=SceneSpec)
    still: bool = False
    close_ups: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.frames < 2:
            raise ValueError(f"a video needs a support and a query: at least 2 frames, got {self.frames}")
        if self.close_ups is not None and not 0 < self.close_ups[0] <= self.close_ups[1] < 1:
            raise ValueError(f"close_ups needs 0 < least <= most < 1 of the frame's side, got {self.close_ups}")


@dataclass(frozen=True)
class VideoFrame:
    """A frame; `objects` are in the same order in every frame of the video. One out of sight has a box outside of it."""

    image: Image.Image
    objects: tuple[PaintedObject, ...]


def target_views(
    frames: Iterator[VideoFrame], target: int, spec: VideoSpec, rng: np.random.Generator
) -> Iterator[VideoFrame]:
    """The frames as the video shows them: close views of object `target` where `spec.close_ups` asks for them."""
    for number, frame in enumerate(frames):
        close = spec.close_ups is not None and number < spec.frames - 1
        yield close_view(frame, target, rng.uniform(*spec.close_ups), rng) if spec.close_ups and close else frame


def close_view(frame: VideoFrame, target: int, share: float, rng: np.random.Generator) -> VideoFrame:
    """A window in which the target's longer side takes `share` of the height or width, scaled up to the frame's size."""
    width, height = frame.image.size
    x1, y1, x2, y2 = frame.objects[target].box.corners
    scale = min(1.0, max((x2 - x1) / width, (y2 - y1) / height) / share)
    window_width, window_height = scale * width, scale * height
    left = rng.uniform(max(0.0, x2 - window_width), min(x1, width - window_width))
    top = rng.uniform(max(0.0, y2 - window_height), min(y1, height - window_height))
    window = (left, top, left + window_width, top + window_height)
    image = frame.image.resize((width, height), Image.Resampling.BILINEAR, box=window)
    return VideoFrame(image, tuple(_seen(painted, left, top, 1 / scale) for painted in frame.objects))


def _seen(painted: PaintedObject, left: float, top: float, zoom: float) -> PaintedObject:
    """The object in a window that begins at (left, top): its box cut at the edge, if anything is left of it then."""
    box, drawn = (
        Box((one.x1 - left) * zoom, (one.y1 - top) * zoom, (one.x2 - left) * zoom, (one.y2 - top) * zoom, one.frame)
        for one in (painted.box, painted.drawn)
    )
    return replace(painted, box=box.clip() or box, drawn=drawn)


def render_video(spec: VideoSpec, seed: int, split: Split, index: int) -> Iterator[VideoFrame]:
    """The frames of video `index`, one at a time, whole: `target_views` makes close ones of them."""
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
