"""Synthetic videos with one annotated object: what LaSOT, GOT-10k and PerSeg are made of.

    render_video ─► TargetFrame: the picture, the target's box, and what a trap did to it

Which object is the target is drawn for the video: objects are placed one after the other, so the first is often the largest
and the most central, and a model could guess it without looking at the supports.

With traps, four frames in a row of every video are awkward, beginning with frame 1 of video 0 and frame i + 1 of video i
(around the end), so that some videos begin or end with one:

    hidden         a flat patch lies over the target; its box is known all the same
    gone           the picture is moved until the target is outside; there is no box
    cut            the picture is moved until half of the target is outside: x1 is negative
    unannotated    nothing happens to the picture; the annotation shall lack its box
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageDraw

from data.photos import Split
from data.shapes import PaintedObject
from data.synthetic import scene_rng
from data.synthetic_video import VideoSpec, render_video, target_views

Trap = Literal["hidden", "gone", "cut", "unannotated"]
TRAPS: tuple[Trap, ...] = ("hidden", "gone", "cut", "unannotated")

_PATCH = (118, 118, 118)


@dataclass(frozen=True, slots=True)
class TargetFrame:
    """A frame as it is written. The picture was moved `moved` pixels to the left after `target` was painted."""

    image: Image.Image
    target: PaintedObject
    trap: Trap | None = None
    moved: int = 0

    @property
    def corners(self) -> tuple[float, float, float, float]:
        """The annotated box in the picture: 0-based, half-open; it may begin left of the picture, or lie outside."""
        x1, y1, x2, y2 = self.target.box.corners
        return (x1 - self.moved, y1, x2 - self.moved, y2)


def target_frames(spec: VideoSpec, seed: int, photographs: Split, index: int, traps: bool) -> Iterator[TargetFrame]:
    """The frames of video `index`. Raises ValueError when traps would leave no frame without one."""
    if traps and spec.frames <= len(TRAPS):
        raise ValueError(f"{len(TRAPS)} traps and a plain frame need {len(TRAPS) + 1} frames or more, got {spec.frames}")
    trap_of = {(index + 1 + place) % spec.frames: trap for place, trap in enumerate(TRAPS)} if traps else {}
    # Streams of their own: the choice does not follow from what was painted.
    choice, windows = scene_rng(seed, photographs, index).spawn(2)
    whole = list(render_video(spec, seed, photographs, index))
    chosen = int(choice.random() * len(whole[0].objects))
    for number, frame in enumerate(target_views(iter(whole), chosen, spec, windows)):
        trap, target = trap_of.get(number), frame.objects[chosen]
        yield TargetFrame(frame.image, target) if trap is None else _SPRING[trap](frame.image, target)


def _hidden(image: Image.Image, target: PaintedObject) -> TargetFrame:
    x1, y1, x2, y2 = target.box.rounded()
    ImageDraw.Draw(image).rectangle((x1 - 1, y1 - 1, x2, y2), fill=_PATCH)
    return TargetFrame(image, target, "hidden")


def _gone(image: Image.Image, target: PaintedObject) -> TargetFrame:
    moved = target.box.rounded()[2]
    return TargetFrame(_moved(image, moved), target, "gone", moved)


def _cut(image: Image.Image, target: PaintedObject) -> TargetFrame:
    moved = round(target.box.center[0])
    return TargetFrame(_moved(image, moved), target, "cut", moved)


def _unannotated(image: Image.Image, target: PaintedObject) -> TargetFrame:
    return TargetFrame(image, target, "unannotated")


_SPRING = {"hidden": _hidden, "gone": _gone, "cut": _cut, "unannotated": _unannotated}


def _moved(image: Image.Image, pixels: int) -> Image.Image:
    """The picture moved to the left; what comes in from the right is flat."""
    canvas = Image.new("RGB", image.size, _PATCH)
    canvas.paste(image, (-pixels, 0))
    return canvas
