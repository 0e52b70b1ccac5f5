"""Boxes drawn into pictures: the supports' own, and any others, with a halo so that they show on every ground."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image as PILImage
from PIL import ImageDraw

from data.sample import Sample, SupportBoxPart
from rl.runlog import Corners

Colour = tuple[int, int, int]
SUPPORT, HALO = (30, 110, 230), (0, 0, 0)
HEIGHT = 256


def support_boxes(sample: Sample) -> list[list[tuple[Corners, Colour]]]:
    """The boxes that the prompt gives, by image."""
    boxes: list[list[tuple[Corners, Colour]]] = [[] for _ in sample.images]
    for part in sample.prompt:
        if isinstance(part, SupportBoxPart):
            boxes[part.index].append((part.box.corners, SUPPORT))
    return boxes


def draw_boxes(image: PILImage.Image, boxes: Sequence[tuple[Corners, Colour]]) -> PILImage.Image:
    """The image with its boxes (original pixels), HEIGHT pixels high; without boxes the image as it is.

    Boxes are cut at the edges so that their sides stay in sight.
    """
    if not boxes:
        return image
    scale = HEIGHT / image.height
    panel = image.resize((max(1, round(image.width * scale)), HEIGHT), PILImage.Resampling.LANCZOS)
    pen = ImageDraw.Draw(panel)
    for corners, colour in boxes:
        right, bottom = panel.width - 1, panel.height - 1
        x1, x2 = (min(max(round(value * scale), 0), right) for value in (corners[0], corners[2]))
        y1, y2 = (min(max(round(value * scale), 0), bottom) for value in (corners[1], corners[3]))
        pen.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=HALO, width=5)
        pen.rectangle((x1, y1, x2, y2), outline=colour, width=3)
    return panel
