"""Writes synthetic albums in PerSeg's layout: pictures of one object each, with colour masks.

    ROOT/Images/star_001/00.jpg …        ROOT/Annotations/star_001/00.png …

The mask is the painted target alone, dark red on black; distractors have none. With `traps` (see `single_target`): where the
target is hidden or gone the mask is black, where it is cut the mask ends at the border, and the mask of the frame that would
be unannotated is a palette image in dark blue, whose grey value is 15 of 255.

Album i depends on (seed, photographs, i) alone: same seed, same bytes, whatever the number of workers.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from data.generators.single_target import TargetFrame, target_frames
from data.parallel import WorkerPool
from data.photos import Split
from data.shapes import PaintedObject, outline
from data.synthetic_video import VideoSpec

_MASK_COLOR = (128, 0, 0)
_DARK_BLUE = (0, 0, 128)
_SUPERSAMPLING = 4


def write_perseg(
    root: Path,
    videos: int,
    seed: int,
    photographs: Split = "val",
    spec: VideoSpec | None = None,
    traps: bool = False,
    workers: int = 1,
) -> Path:
    """Write `videos` albums of `spec.frames` pictures under `root`; returns `root`."""
    write = partial(_write_album, root=root, seed=seed, photographs=photographs, spec=spec or VideoSpec(), traps=traps)
    with WorkerPool(workers) as pool:
        for _ in pool.map(write, range(videos)):
            pass
    return root


def _write_album(index: int, *, root: Path, seed: int, photographs: Split, spec: VideoSpec, traps: bool) -> None:
    frames = list(target_frames(spec, seed, photographs, index, traps))
    name = f"{frames[0].target.shape}_{index + 1:03d}"
    images, masks = root / "Images" / name, root / "Annotations" / name
    images.mkdir(parents=True, exist_ok=True)
    masks.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(frames):
        frame.image.save(images / f"{number:02d}.jpg", quality=spec.scene.jpeg_quality, subsampling=0)
        _mask(frame).save(masks / f"{number:02d}.png")


def _mask(frame: TargetFrame) -> Image.Image:
    width, height = frame.image.size
    shown = np.zeros((height, width), dtype=np.uint8)
    if frame.trap not in ("hidden", "gone"):
        shown[:, : width - frame.moved] = _covered(frame.target, width, height)[:, frame.moved :]
    palette = Image.fromarray(shown, "P")
    palette.putpalette((0, 0, 0, *(_DARK_BLUE if frame.trap == "unannotated" else _MASK_COLOR)))
    return palette if frame.trap == "unannotated" else palette.convert("RGB")


def _covered(target: PaintedObject, width: int, height: int) -> NDArray[np.uint8]:
    """1 where the target covers any of a pixel, as `data.shapes.paint` draws it; else 0."""
    box = target.drawn
    left, top, right, bottom = math.floor(box.x1), math.floor(box.y1), math.ceil(box.x2), math.ceil(box.y2)
    large = Image.new("L", ((right - left) * _SUPERSAMPLING, (bottom - top) * _SUPERSAMPLING))
    corners = (outline(target.shape, box) - [left, top]) * _SUPERSAMPLING
    # Pillow counts a polygon's boundary pixels as inside, hence half a pixel less.
    ImageDraw.Draw(large).polygon([tuple(corner) for corner in corners - 0.5], fill=255)
    covered = np.zeros((height, width), dtype=np.uint8)
    covered[top:bottom, left:right] = np.asarray(large.reduce(_SUPERSAMPLING)) > 0
    return covered
