"""Prompts with one, two and five images, on which the tests of every model family run."""

from __future__ import annotations

import numpy as np

from data.box import Box
from data.prompts import focus_prompt, locus_prompt
from data.sample import EncodedImage, ImagePart, Sample, TextPart
from tests.rl.pictures import png

ARCHITECTURES = ("qwen2_vl", "qwen2_5_vl", "llava_onevision")


def family_samples() -> list[Sample]:
    """A question about one image, LOCUS, and FOCUS in 4 shots; the first image of all three is the same."""
    rng = np.random.default_rng(17)
    images = tuple(png(rng, 100 + 20 * number, 90) for number in range(5))
    boxes = tuple(Box(3 + number, 4, 50 + number, 60, images[number].frame) for number in range(4))
    alone = (ImagePart(0), TextPart("Where is the red disc?"))
    return [
        Sample("one", "test", images[:1], alone, target_in(images[0])),
        Sample("two", "test", images[:2], locus_prompt(), target_in(images[0])),
        Sample("five", "test", images, focus_prompt(boxes), target_in(images[4]), target_image=4),
    ]


def target_in(image: EncodedImage) -> Box:
    return Box(1, 2, 30, 40, image.frame)
