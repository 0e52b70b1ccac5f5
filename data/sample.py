"""Sample: one localization question, as datasets store it and as everything downstream sees it.

A sample never holds pixels as tensors: an image is encoded bytes (PNG, JPEG) or a path, and is decoded where it is used.
Boxes are in original pixels. The prompt is a list of parts in the order the model reads them:

    Image(0)  Image(1)  Text("Image 1 is a full scene image. …")                 LOCUS: scene, cue, question
    Text("Locate …")  Image(0)  SupportBox(0)  …  Image(4)                       FOCUS: supports with boxes, query
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image as PILImage

from data.box import Box, Frame


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """An image file: its bytes or its path, and its decoded size in pixels."""

    width: int
    height: int
    encoded: bytes | None = field(default=None, repr=False)
    path: str | None = None

    def __post_init__(self) -> None:
        if (self.encoded is None) == (self.path is None):
            raise ValueError("an image has either bytes or a path, and exactly one of them")

    @property
    def frame(self) -> Frame:
        """The image's own pixel frame."""
        return Frame.original(self.width, self.height)

    def open(self) -> PILImage.Image:
        """Decode to RGB. Raises ValueError, naming the image, when it is missing, corrupt, or of another size."""
        where = self.path if self.path is not None else f"{len(self.encoded or b'')} encoded bytes"
        try:
            image = PILImage.open(io.BytesIO(self.encoded) if self.encoded is not None else Path(self.path or ""))
            image.load()
        except (OSError, SyntaxError, PILImage.DecompressionBombError) as error:
            raise ValueError(f"image cannot be decoded ({where}): {error}") from error
        if image.size != (self.width, self.height):
            raise ValueError(f"image is {image.width}×{image.height}, the dataset says {self.width}×{self.height} ({where})")
        return image.convert("RGB")


@dataclass(frozen=True, slots=True)
class TextPart:
    text: str


@dataclass(frozen=True, slots=True)
class ImagePart:
    """The place of `Sample.images[index]` in the prompt."""

    index: int


@dataclass(frozen=True, slots=True)
class SupportBoxPart:
    """A given box of image `index`, written into the prompt in the model family's frame."""

    index: int
    box: Box


PromptPart = TextPart | ImagePart | SupportBoxPart


@dataclass(frozen=True, slots=True)
class Sample:
    """One question and its answer box.

    `target` is in original pixels of `images[target_image]`; `distractors` are boxes of the same image that look like the
    answer and are not (may be empty). `metadata` holds plain values (category, area bin, source ids).
    """

    id: str
    source: str
    images: tuple[EncodedImage, ...]
    prompt: tuple[PromptPart, ...]
    target: Box
    target_image: int = 0
    distractors: tuple[Box, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        frame = self.images[self.target_image].frame
        for box in (self.target, *self.distractors):
            if box.frame != frame:
                raise ValueError(f"sample {self.id}: boxes are in {frame} of image {self.target_image}, got {box.frame}")
        shown = [part.index for part in self.prompt if isinstance(part, ImagePart)]
        if shown != list(range(len(self.images))):
            raise ValueError(f"sample {self.id}: the prompt shows images {shown}, the sample has {len(self.images)}")
