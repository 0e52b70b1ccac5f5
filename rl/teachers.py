"""What SFT teaches as the answer to a sample: teachers by name.

A teacher is a function of (sample, family, limits) that writes the assistant's turn. `locus` and `focus` are exact.
`locus_imprecise` knows which object is meant and boxes it loosely, as a model that was taught the form of the answer does:
what a warm start needs, so that GRPO, whose reward is exact, has something left to find out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from data.box import Box
from data.families import ModelFamily, PixelLimits
from data.prompts import focus_response, locus_response
from data.sample import Sample

Teacher = Callable[[Sample, ModelFamily, PixelLimits | None], str]

# A side of an imprecise box lies this share of the image outside of the target, this often.
SLIP = 1 / 16
SLIP_PROBABILITY = 0.6


def imprecise_locus_response(sample: Sample, family: ModelFamily, limits: PixelLimits | None = None) -> str:
    """`locus_response` with a loose box; the same sample always gets the same one."""
    digest = hashlib.blake2b(f"{sample.source}|{sample.id}".encode(), digest_size=8).digest()
    rng = np.random.default_rng(int.from_bytes(digest, "little"))
    return locus_response(replace(sample, target=loosened(sample.target, rng)), family, limits)


def loosened(box: Box, rng: np.random.Generator) -> Box:
    """The box with every side, at random, moved out; inside its frame."""
    left, top, right, bottom = (SLIP if roll < SLIP_PROBABILITY else 0.0 for roll in rng.random(4))
    width, height = box.frame.width, box.frame.height
    loose = Box(
        box.x1 - left * width, box.y1 - top * height, box.x2 + right * width, box.y2 + bottom * height, box.frame
    ).clip()
    assert loose is not None
    return loose


TEACHERS: Mapping[str, Teacher] = {
    "locus": locus_response,
    "focus": focus_response,
    "locus_imprecise": imprecise_locus_response,
}
