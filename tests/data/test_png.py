"""A PNG of ours is a PNG: Pillow reads it, and finds every pixel."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.photos import load_photographs
from data.png import encode_png


def read(encoded: bytes) -> Image.Image:
    Image.open(io.BytesIO(encoded), formats=["PNG"]).verify()  # checksums too
    return Image.open(io.BytesIO(encoded)).copy()


@given(width=st.integers(1, 70), height=st.integers(1, 70), seed=st.integers(0, 9))
@settings(deadline=None)
def test_every_pixel_survives(width: int, height: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = read(encode_png(Image.fromarray(pixels)))
    assert (image.mode, image.size) == ("RGB", (width, height))
    assert np.array_equal(np.asarray(image), pixels)


def test_a_photograph_takes_no_more_room_than_pillows() -> None:
    for photograph in load_photographs("train"):
        crop = photograph.crop((40, 30, 140, 150))
        pillows = io.BytesIO()
        crop.save(pillows, "PNG", compress_level=1)
        encoded = encode_png(crop)
        assert np.array_equal(np.asarray(read(encoded)), np.asarray(crop))
        assert len(encoded) <= 1.1 * len(pillows.getvalue())


def test_other_modes_are_refused() -> None:
    with pytest.raises(ValueError, match="takes RGB images, got L"):
        encode_png(Image.new("L", (4, 4)))
