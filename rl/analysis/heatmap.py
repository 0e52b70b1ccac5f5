"""Heat-maps (FOCUS, §7.2): a vector of attention over an image's tokens, drawn over the image.

    vector [N] ─► grid [rows, columns] ─► bilinear to the image's pixels ─► normalize to [0, 1] ─► colour over the image

Normalization: `peak` divides by the largest value, so that zero stays zero; `minmax` also takes the smallest to 0. The
extremes are the picture's own, or shared by all pictures of a command, or a given peak: then colours compare.
Colours are matplotlib's inferno, whose lightness rises evenly; a pixel's opacity rises with its value, so that the image
shows where the model does not look.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn.functional import interpolate

from rl.analysis.grid import ImageGrid
from rl.runlog import Corners

# Inferno (CC0) at nine even steps; between them colours are interpolated.
_INFERNO = ("000004", "210c4a", "56106e", "89226a", "bb3754", "e35932", "f98c0a", "f9c932", "fcffa4")
COLORS = np.array([[int(code[at : at + 2], 16) for at in (0, 2, 4)] for code in _INFERNO], dtype=np.float32)
MAX_OPACITY = 0.8
TRUTH, PREDICTION, GIVEN = "#35c46a", "#4f9bff", "#ffffff"


@dataclass(frozen=True)
class Extremes:
    """The attention that becomes 0 and the one that becomes 1."""

    low: float
    high: float


@dataclass(frozen=True)
class Outline:
    """A box to draw, in original pixels."""

    corners: Corners
    color: str


def upsample(attention_N: Tensor, grid: ImageGrid, width: int, height: int) -> Tensor:
    """[height, width]: the vector on its grid, bilinear between the cells' centres, cut to the image."""
    x1, y1, x2, y2 = (round(value) for value in grid.region)
    cells = attention_N.reshape(1, 1, grid.rows, grid.columns).float()
    over_region = interpolate(cells, size=(y2 - y1, x2 - x1), mode="bilinear", align_corners=False)[0, 0]
    return over_region[-y1 : height - y1, -x1 : width - x1]


def _peak(heat: Tensor) -> Extremes:
    return Extremes(0.0, float(heat.max()))


def _minmax(heat: Tensor) -> Extremes:
    return Extremes(float(heat.min()), float(heat.max()))


EXTREMES: dict[str, Callable[[Tensor], Extremes]] = {"peak": _peak, "minmax": _minmax}


def common(extremes: Sequence[Extremes]) -> Extremes:
    """Extremes that serve all pictures."""
    return Extremes(min(e.low for e in extremes), max(e.high for e in extremes))


def normalize(heat: Tensor, extremes: Extremes) -> Tensor:
    """To [0, 1]; values beyond given extremes are cut. A picture without contrast becomes 0 everywhere."""
    if extremes.high <= extremes.low:
        return torch.zeros_like(heat)
    return ((heat - extremes.low) / (extremes.high - extremes.low)).clamp(0.0, 1.0)


def colorize(heat: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """RGB 0–255 of values in [0, 1]."""
    at = heat * (len(COLORS) - 1)
    below = np.minimum(at.astype(np.intp), len(COLORS) - 2)
    part = (at - below)[..., None]
    mixed: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = COLORS[below] * (1 - part) + COLORS[below + 1] * part
    return mixed


def overlay(image: Image.Image, heat: Tensor, outlines: Sequence[Outline]) -> Image.Image:
    """The image under its normalized heat-map [height, width], with boxes drawn on top."""
    values = heat.numpy().astype(np.float32)
    opacity = MAX_OPACITY * values[..., None]
    blended = np.asarray(image, dtype=np.float32) * (1 - opacity) + colorize(values) * opacity
    drawn = Image.fromarray(blended.round().astype(np.uint8))
    pen, line = ImageDraw.Draw(drawn), max(1, round(max(drawn.size) / 200))
    for outline in outlines:
        x1, y1, x2, y2 = outline.corners
        edges = (max(x1, 0), max(y1, 0), min(x2, drawn.width) - 1, min(y2, drawn.height) - 1)
        if edges[2] >= edges[0] and edges[3] >= edges[1]:
            pen.rectangle(edges, outline=outline.color, width=line)
    return drawn
