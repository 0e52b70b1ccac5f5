"""A box that knows its coordinate frame, conversions between frames, and IoU.

Three frames exist, because model families disagree about what the numbers in a box mean:

    original     pixels of the image file               (datasets keep only these)
    resized      pixels after the processor's resize    (Qwen2.5-VL, MiMo-VL)
    thousandths  0–1000 of width and of height          (Qwen2-VL, Qwen3-VL, LLaVA-OneVision)

A 640×480 image becomes 644×476 for Qwen2.5-VL; reading such an answer as original pixels costs a 20-px box near the
corner half its IoU. So conversion is explicit, and IoU across frames is an error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

FrameKind = Literal["original", "resized", "thousandths"]


@dataclass(frozen=True, slots=True)
class Frame:
    """A coordinate frame: its kind and its extent (width, height) in its own units. Origin top left, x right, y down."""

    kind: FrameKind
    width: int
    height: int

    def __post_init__(self) -> None:
        if self.width <= 0 or self.height <= 0:
            raise ValueError(f"a frame needs a positive size, got {self.width}×{self.height}")

    @classmethod
    def original(cls, width: int, height: int) -> Frame:
        return cls("original", width, height)

    @classmethod
    def resized(cls, width: int, height: int) -> Frame:
        return cls("resized", width, height)

    @classmethod
    def thousandths(cls) -> Frame:
        return cls("thousandths", 1000, 1000)


@dataclass(frozen=True, slots=True)
class Box:
    """Corners (x1, y1) top left and (x2, y2) bottom right, half-open, in the units of `frame`; never empty.

    Raises ValueError for a non-finite, empty or reversed box. A box may leave its frame (predictions do); `clip` it.
    """

    x1: float
    y1: float
    x2: float
    y2: float
    frame: Frame

    def __post_init__(self) -> None:
        if not all(math.isfinite(value) for value in self.corners):
            raise ValueError(f"box corners must be finite, got {self.corners}")
        if self.x2 <= self.x1 or self.y2 <= self.y1:
            raise ValueError(f"a box needs x2 > x1 and y2 > y1, got {self.corners}")

    @classmethod
    def from_xywh(cls, x: float, y: float, width: float, height: float, frame: Frame) -> Box:
        """From a corner and a size, as COCO, LaSOT and GOT-10k write boxes."""
        return cls(x, y, x + width, y + height, frame)

    @property
    def corners(self) -> tuple[float, float, float, float]:
        return (self.x1, self.y1, self.x2, self.y2)

    @property
    def area(self) -> float:
        return (self.x2 - self.x1) * (self.y2 - self.y1)

    @property
    def center(self) -> tuple[float, float]:
        return ((self.x1 + self.x2) / 2, (self.y1 + self.y2) / 2)

    def to(self, frame: Frame) -> Box:
        """The same region of the same image in another frame."""
        sx, sy = frame.width / self.frame.width, frame.height / self.frame.height
        return Box(self.x1 * sx, self.y1 * sy, self.x2 * sx, self.y2 * sy, frame)

    def clip(self) -> Box | None:
        """The part inside the frame, or None if nothing is."""
        x1, y1 = max(self.x1, 0.0), max(self.y1, 0.0)
        x2, y2 = min(self.x2, float(self.frame.width)), min(self.y2, float(self.frame.height))
        return Box(x1, y1, x2, y2, self.frame) if x2 > x1 and y2 > y1 else None

    def rounded(self) -> tuple[int, int, int, int]:
        """Integer corners as a prompt or an answer writes them."""
        return (round(self.x1), round(self.y1), round(self.x2), round(self.y2))


def iou(a: Box, b: Box) -> float:
    """Intersection over union in [0, 1]. Raises ValueError when the boxes are in different frames."""
    if a.frame != b.frame:
        raise ValueError(f"IoU needs one frame, got {a.frame} and {b.frame}; convert with Box.to")
    width = min(a.x2, b.x2) - max(a.x1, b.x1)
    height = min(a.y2, b.y2) - max(a.y1, b.y1)
    if width <= 0 or height <= 0:
        return 0.0
    intersection = width * height
    return intersection / (a.area + b.area - intersection)
