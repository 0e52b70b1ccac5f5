"""Opens image files that samples are made of, and says in one word what is wrong with one that cannot serve."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Literal

from PIL import Image as PILImage

ImageProblem = Literal["missing_image", "undecodable_image", "size_mismatch"]

# Formats that datasets of photographs come in. Pillow would also start other programs for some (EPS).
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")


class ImageFileError(ValueError):
    """An image file that cannot serve; names the file. `problem` is the one word."""

    def __init__(self, problem: ImageProblem, message: str) -> None:
        super().__init__(message)
        self.problem = problem


def load_image(path: Path, size: tuple[int, int] | None) -> tuple[bytes, PILImage.Image]:
    """The file's bytes and its pixels, decoded to the end; `size` is what its annotation says, None where it says nothing.

    As stored: annotations are made without turning images as their EXIF says, and images are shown so too. Raises
    ImageFileError.
    """
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a file name that no file can have
        raise ImageFileError("missing_image", f"{path}: the image cannot be read ({error})") from error
    try:
        image = PILImage.open(io.BytesIO(content), formats=_FORMATS)
        found = image.size
        if size is None or found == size:
            image.load()
    except Exception as error:  # Pillow's decoders raise almost anything on damaged bytes; all of it means the same here.
        raise ImageFileError("undecodable_image", f"{path}: the image cannot be decoded ({error})") from error
    if size is not None and found != size:
        seen, said = (f"{width}×{height}" for width, height in (found, size))
        raise ImageFileError("size_mismatch", f"{path}: the image is {seen}, its annotation was made for {said}")
    return content, image


def image_size(path: Path) -> tuple[int, int]:
    """Width and height as stored, from the file's header. Raises ImageFileError."""
    try:
        with PILImage.open(path, formats=_FORMATS) as image:
            return image.size
    except FileNotFoundError as error:
        raise ImageFileError("missing_image", f"{path}: the image cannot be read ({error})") from error
    except Exception as error:  # as above
        raise ImageFileError("undecodable_image", f"{path}: the image cannot be decoded ({error})") from error
