"""Flat objects with a shape, a colour and a pattern, drawn as antialiased, shaded cut-outs: what synthetic scenes show."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from data.box import Box

# Edges are drawn at this multiple of the resolution and averaged down.
_SUPERSAMPLING = 4

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (215, 30, 35),
    "green": (35, 165, 50),
    "blue": (35, 70, 220),
    "yellow": (245, 220, 40),
    "purple": (140, 45, 175),
    "orange": (245, 130, 25),
    "cyan": (50, 210, 225),
    "pink": (250, 135, 190),
}
PLAIN = "plain"
PATTERNS = (PLAIN, "striped", "dotted", "checkered")


def _regular(corners: int, turn: float = -0.25) -> list[tuple[float, float]]:
    angles = [2 * math.pi * (corner / corners + turn) for corner in range(corners)]
    return [(math.cos(angle), math.sin(angle)) for angle in angles]


def _star() -> list[tuple[float, float]]:
    return [(x * r, y * r) for (x, y), r in zip(_regular(10), (1.0, 0.45) * 5, strict=True)]


def _heart() -> list[tuple[float, float]]:
    angles = [2 * math.pi * step / 32 for step in range(32)]
    return [
        (16 * math.sin(a) ** 3, -(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)))
        for a in angles
    ]


_CROSS = [(1, 0), (2, 0), (2, 1), (3, 1), (3, 2), (2, 2), (2, 3), (1, 3), (1, 2), (0, 2), (0, 1), (1, 1)]

# Outlines in any units: `outline` stretches each to the box it is drawn in, so the box is tight by construction.
_OUTLINES: dict[str, list[tuple[float, float]]] = {
    "disc": _regular(32),
    "square": [(0, 0), (1, 0), (1, 1), (0, 1)],
    "triangle": [(0.5, 0), (1, 1), (0, 1)],
    "diamond": _regular(4),
    "cross": [(float(x), float(y)) for x, y in _CROSS],
    "star": _star(),
    "hexagon": _regular(6, turn=0.0),
    "heart": _heart(),
}
SHAPES = tuple(_OUTLINES)


@dataclass(frozen=True, slots=True)
class PaintedObject:
    """One object of a scene, in its original pixels: `drawn` is filled by the shape exactly, `box` is what is annotated."""

    shape: str
    color: str
    pattern: str
    box: Box
    drawn: Box


def outline(shape: str, box: Box) -> NDArray[np.float64]:
    """The polygon (corners, 2) of the shape, filling the box exactly."""
    points = np.asarray(_OUTLINES[shape], dtype=np.float64)
    points = (points - points.min(axis=0)) / np.ptp(points, axis=0)
    corners: NDArray[np.float64] = points * [box.x2 - box.x1, box.y2 - box.y1] + [box.x1, box.y1]
    return corners


def polygon_area(points: NDArray[np.float64]) -> float:
    """The shoelace formula."""
    x, y = points[:, 0], points[:, 1]
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


def _texture(pattern: str, x: NDArray[np.float64], y: NDArray[np.float64], period: float) -> NDArray[np.float64]:
    """Where the pattern is dark, 0 or 1, at pixel centres (x of shape (1, W), y of shape (H, 1))."""
    u, v = np.floor(2 * x / period), np.floor(2 * y / period)
    dark: NDArray[np.float64] = np.zeros(np.broadcast_shapes(x.shape, y.shape))
    if pattern == "striped":
        dark += u % 2
    elif pattern == "checkered":
        dark += (u + v) % 2
    elif pattern == "dotted":
        dark += np.hypot(x % period - period / 2, y % period - period / 2) < 0.3 * period
    return dark


def paint(scene: NDArray[np.float32], painted: PaintedObject, rng: np.random.Generator) -> None:
    """Draw the object into `scene` (H, W, 3; 0–255) in place. Draws from `rng`: tint, light and grain."""
    height, width = scene.shape[:2]
    box = painted.drawn
    left, top = math.floor(box.x1), math.floor(box.y1)
    right, bottom = min(math.ceil(box.x2), width), min(math.ceil(box.y2), height)
    mask = Image.new("L", ((right - left) * _SUPERSAMPLING, (bottom - top) * _SUPERSAMPLING))
    corners = (outline(painted.shape, box) - [left, top]) * _SUPERSAMPLING
    # Pillow counts a polygon's boundary pixels as inside, hence half a pixel less.
    ImageDraw.Draw(mask).polygon([tuple(corner) for corner in corners - 0.5], fill=255)
    alpha = np.asarray(mask.reduce(_SUPERSAMPLING), dtype=np.float32)[..., None] / 255

    x = np.arange(left, right)[None, :] + 0.5 - box.x1
    y = np.arange(top, bottom)[:, None] + 0.5 - box.y1
    extent = max(box.x2 - box.x1, box.y2 - box.y1)
    dark = _texture(painted.pattern, x, y, period=extent / 3)
    slope_x, slope_y = rng.uniform(-0.15, 0.15, size=2)
    light = 1.0 + slope_x * (2 * x / extent - 1) + slope_y * (2 * y / extent - 1)
    tint = np.asarray(COLORS[painted.color]) + rng.uniform(-12, 12, size=3)
    surface = tint * (light * (1 - 0.55 * dark))[..., None] + rng.normal(0, 4, size=(bottom - top, right - left, 1))
    region = scene[top:bottom, left:right]
    region += alpha * (np.clip(surface, 0, 255).astype(np.float32) - region)
