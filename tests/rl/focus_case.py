"""FOCUS samples with few pixels: a support is a grey image whose brightness is its number."""

from __future__ import annotations

import io

from PIL import Image

from data.box import Box
from data.prompts import focus_prompt
from data.sample import EncodedImage, Sample


def grey(brightness: int, width: int = 56, height: int = 56) -> EncodedImage:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (brightness,) * 3).save(buffer, "PNG")
    return EncodedImage(width, height, encoded=buffer.getvalue())


def brightness(image: EncodedImage) -> int:
    value = image.open().getpixel((0, 0))
    assert isinstance(value, tuple)
    return int(value[0])


def episode(shots: int, name: str = "video", source: str = "tao") -> Sample:
    """Supports 0 … shots − 1 with a box that starts at their number; the query is as bright as 100."""
    images = (*(grey(number) for number in range(shots)), grey(100))
    boxes = tuple(Box(number, 2, 30, 40, images[number].frame) for number in range(shots))
    return Sample(
        id=f"{source}/{name}@{shots}",
        source=source,
        images=images,
        prompt=focus_prompt(boxes),
        target=Box(5, 6, 25, 36, images[-1].frame),
        target_image=shots,
        distractors=(Box(30, 30, 50, 50, images[-1].frame),),
        metadata={"shots": shots, "frames": [10 * number for number in range(shots + 1)], "moved_frames": 0},
    )
