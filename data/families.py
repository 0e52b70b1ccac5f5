"""Model families: in which coordinate frame each writes a box, and to what size its processor resizes an image.

    family            box in text                     unit = patch × merge    pixels of the published processors
    Qwen2-VL          0–1000                          14 × 2                  3,136 – 12,845,056
    Qwen2.5-VL        pixels after the resize         14 × 2                  3,136 – 12,845,056
    MiMo-VL           pixels after the resize         14 × 2                  3,136 – 12,845,056
    Qwen3-VL          0–1000                          16 × 2                  65,536 – 16,777,216
    LLaVA-OneVision   0–1000 (as FOCUS trains it)     14 × 1, tiles of 384    (fixed)

The pixel limits are those of the checkpoints' own preprocessor_config.json; a run may narrow them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from data.box import Frame, FrameKind
from data.sample import EncodedImage

SizeRule = Literal["smart_resize", "tiles"]

# transformers' smart_resize refuses a longer image than this.
MAX_ASPECT_RATIO = 200


@dataclass(frozen=True, slots=True)
class PixelLimits:
    """The processor's bounds on width × height after its resize."""

    min_pixels: int
    max_pixels: int

    def __post_init__(self) -> None:
        if not 0 < self.min_pixels <= self.max_pixels:
            raise ValueError(f"need 0 < min_pixels <= max_pixels, got {self.min_pixels} and {self.max_pixels}")


@dataclass(frozen=True, slots=True)
class ModelFamily:
    """What data has to know about a model: the frame of its boxes and the arithmetic of its image size."""

    name: str
    model_types: tuple[str, ...]
    frame_kind: FrameKind
    patch: int
    merge: int
    limits: PixelLimits
    size_rule: SizeRule

    @property
    def unit(self) -> int:
        """Side in pixels of the square that becomes one token of the language model."""
        return self.patch * self.merge

    def resized_size(self, width: int, height: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
        """(width, height) after the processor's resize; (640, 480) gives (644, 476) in units of 28.

        Raises ValueError where the processor itself refuses (aspect ratio above 200), and for families that cut tiles
        instead of resizing to one size.
        """
        if self.size_rule != "smart_resize":
            raise ValueError(f"{self.name} cuts an image into tiles; it has no single resized size")
        if width <= 0 or height <= 0:
            raise ValueError(f"an image needs a positive size, got {width}×{height}")
        if max(width, height) / min(width, height) > MAX_ASPECT_RATIO:
            raise ValueError(f"the aspect ratio of {width}×{height} is above {MAX_ASPECT_RATIO}; {self.name} refuses it")
        return smart_resize(width, height, self.unit, PixelLimits(min_pixels, max_pixels))

    def answer_frame(self, image: EncodedImage, limits: PixelLimits | None = None) -> Frame:
        """The frame in which this family writes a box of `image`; `limits` are the run's (default: the family's own)."""
        if self.frame_kind == "thousandths":
            return Frame.thousandths()
        limits = limits or self.limits
        return Frame.resized(*self.resized_size(image.width, image.height, limits.min_pixels, limits.max_pixels))


def smart_resize(width: int, height: int, unit: int, limits: PixelLimits) -> tuple[int, int]:
    """Qwen's rule: both sides multiples of `unit`, the area within the limits, the aspect ratio nearly kept.

    The order of roundings is the processors' own, so that the last pixel agrees too.
    """
    new_width, new_height = round(width / unit) * unit, round(height / unit) * unit
    if new_width * new_height > limits.max_pixels:
        shrink = math.sqrt((height * width) / limits.max_pixels)
        new_width = max(unit, math.floor(width / shrink / unit) * unit)
        new_height = max(unit, math.floor(height / shrink / unit) * unit)
    elif new_width * new_height < limits.min_pixels:
        grow = math.sqrt(limits.min_pixels / (height * width))
        new_width = math.ceil(width * grow / unit) * unit
        new_height = math.ceil(height * grow / unit) * unit
    return new_width, new_height


_QWEN2_LIMITS = PixelLimits(56 * 56, 28 * 28 * 16384)
_QWEN3_LIMITS = PixelLimits(256 * 256, 4096 * 4096)

FAMILIES: dict[str, ModelFamily] = {
    "qwen2_vl": ModelFamily("Qwen2-VL", ("qwen2_vl",), "thousandths", 14, 2, _QWEN2_LIMITS, "smart_resize"),
    "qwen2_5_vl": ModelFamily("Qwen2.5-VL", ("qwen2_5_vl",), "resized", 14, 2, _QWEN2_LIMITS, "smart_resize"),
    # MiMo-VL's checkpoints declare Qwen2.5-VL's model_type; the two agree in everything here.
    "mimo_vl": ModelFamily("MiMo-VL", ("qwen2_5_vl",), "resized", 14, 2, _QWEN2_LIMITS, "smart_resize"),
    "qwen3_vl": ModelFamily("Qwen3-VL", ("qwen3_vl", "qwen3_vl_moe"), "thousandths", 16, 2, _QWEN3_LIMITS, "smart_resize"),
    "llava_onevision": ModelFamily(
        "LLaVA-OneVision", ("llava_onevision",), "thousandths", 14, 1, PixelLimits(384 * 384, 2304 * 2304), "tiles"
    ),
}


def family_for(model_type_or_name: str) -> ModelFamily:
    """The family of a key of FAMILIES, a family name, or a Hugging Face `model_type`. Raises ValueError if there is none."""
    wanted = model_type_or_name.lower()
    for key, family in FAMILIES.items():
        if wanted in (key, family.name.lower()):
            return family
    for family in FAMILIES.values():
        if wanted in family.model_types:
            return family
    known = sorted({*FAMILIES, *(kind for family in FAMILIES.values() for kind in family.model_types)})
    raise ValueError(f"no model family is called {model_type_or_name!r}; known are {', '.join(known)}")
