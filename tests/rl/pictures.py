"""Small random pictures, encoded."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from data.sample import EncodedImage


def png(rng: np.random.Generator, width: int, height: int) -> EncodedImage:
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(buffer, "PNG")
    return EncodedImage(width, height, encoded=buffer.getvalue())
