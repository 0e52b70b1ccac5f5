"""Writes synthetic videos in BURST's layout: masks of several tracks of one class, the target's being the most.

    ROOT/annotations/val/all_classes.json            sequences with COCO run-length masks, categories
    ROOT/frames/val/YFCC100M/v_0f3c…/frame0001.jpg, frame0031.jpg …

The target is the track with the most masks (see `labelled_video`); a track's id is the text of a number. With `traps`,
annotations are made as awkward as BURST's own, pixels unchanged; of every ten videos

    video 0    every track is of another class: no video of PerMIRS
    video 1    the target's class is its own: the most frequent of the others, if they are several, takes its place
    video 2    the target's mask of the third frame has no pixels
    video 3    a sibling has as many masks as the target; its id is 10, the target's is 9
    video 4    no track has a mask in the middle frame: the target is absent there
    video 5    the video is from LaSOT: no video of PerMIRS

Video i depends on (seed, photographs, i) alone: same seed, same bytes, whatever the number of workers.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from data.generators.labelled_video import LabelledVideo, VideoFiles, write_video
from data.parallel import WorkerPool
from data.photos import Split
from data.shapes import SHAPES, PaintedObject, outline
from data.synthetic import SceneSpec
from data.synthetic_video import VideoSpec

BurstSplit = Literal["train", "val", "test"]
Record = dict[str, Any]

_SOURCE = "YFCC100M"
_FRAMES_PER_SECOND = 30
_TRAP_PERIOD = 10
# A pixel belongs to a mask when the object covers half of it.
_SUPERSAMPLING = 4


@dataclass
class _Tracks:
    """The tracks of one video; `masks` are of every frame, and in its record where `annotated` holds the frame."""

    ids: list[int]
    categories: list[int]
    masks: list[list[str]]
    annotated: list[set[int]]
    target: int
    no_pixels: str


def write_burst(
    root: Path,
    videos: int,
    seed: int,
    split: BurstSplit = "val",
    photographs: Split = "val",
    spec: VideoSpec | None = None,
    traps: bool = False,
    workers: int = 1,
) -> Path:
    """Write the split `split` of `videos` videos under `root`; returns the annotation file."""
    spec = spec or VideoSpec()
    annotation_file = root / "annotations" / split / "all_classes.json"
    annotation_file.parent.mkdir(parents=True, exist_ok=True)
    write = partial(
        _write_sequence, frames=root / "frames" / split, seed=seed, photographs=photographs, spec=spec, traps=traps
    )
    with WorkerPool(workers) as pool:
        sequences = list(pool.map(write, range(videos)))
    categories = [{"id": 1 + n, "name": shape, "synset": "unknown", "synonyms": []} for n, shape in enumerate(SHAPES)]
    annotation_file.write_text(json.dumps({"split": split, "sequences": sequences, "categories": categories}))
    return annotation_file


def _write_sequence(index: int, *, frames: Path, seed: int, photographs: Split, spec: VideoSpec, traps: bool) -> Record:
    """Write the images of a video; returns its record."""
    trap = index % _TRAP_PERIOD if traps else None
    dataset = "LaSOT" if trap == _FROM_LASOT else _SOURCE
    digest = hashlib.md5(f"{frames.name} {seed} {index}".encode(), usedforsecurity=False).hexdigest()
    images = [f"frame{_FRAMES_PER_SECOND * frame + 1:04d}.jpg" for frame in range(spec.frames)]
    files = VideoFiles(index, tuple(frames / dataset / f"v_{digest}" / image for image in images))
    tracks = _tracks(write_video(files, spec=spec, seed=seed, photographs=photographs), spec.scene)
    if trap is not None and trap in _TRAPS:
        _TRAPS[trap](tracks)
    return {
        "id": index,
        "dataset": dataset,
        "seq_name": f"v_{digest}",
        "width": spec.scene.width,
        "height": spec.scene.height,
        "fps": 1,
        "all_image_paths": images,
        "annotated_image_paths": images,
        "neg_category_ids": [],
        "not_exhaustive_category_ids": [],
        "track_category_ids": {str(track): category for track, category in zip(tracks.ids, tracks.categories, strict=True)},
        "segmentations": [_segmentation(tracks, frame) for frame in range(spec.frames)],
    }


def _segmentation(tracks: _Tracks, frame: int) -> Record:
    return {
        str(track): {"rle": masks[frame], "is_gt": True, "score": 1.0}
        for track, masks, annotated in zip(tracks.ids, tracks.masks, tracks.annotated, strict=True)
        if frame in annotated
    }


def _tracks(labelled: LabelledVideo, scene: SceneSpec) -> _Tracks:
    by_object = list(zip(*labelled.objects, strict=True))
    return _Tracks(
        ids=list(range(1, labelled.count + 1)),
        categories=[1 + SHAPES.index(painted[0].shape) for painted in by_object],
        masks=[[_mask_text(shown, scene) for shown in painted] for painted in by_object],
        annotated=[set(frames) for frames in labelled.annotated],
        target=labelled.target,
        no_pixels=_encode(np.zeros((scene.height, scene.width), dtype=np.bool_)),
    )


def _mask_text(painted: PaintedObject, scene: SceneSpec) -> str:
    """The pixels that the object covers at least half of."""
    box = painted.drawn
    left, top, right, bottom = math.floor(box.x1), math.floor(box.y1), math.ceil(box.x2), math.ceil(box.y2)
    large = Image.new("L", ((right - left) * _SUPERSAMPLING, (bottom - top) * _SUPERSAMPLING))
    corners = (outline(painted.shape, box) - [left, top]) * _SUPERSAMPLING
    # Pillow counts a polygon's boundary pixels as inside, hence half a pixel less (as in `paint`).
    ImageDraw.Draw(large).polygon([tuple(corner) for corner in corners - 0.5], fill=255)
    mask = np.zeros((scene.height, scene.width), dtype=np.bool_)
    mask[top:bottom, left:right] = np.asarray(large.reduce(_SUPERSAMPLING)) >= 128
    return _encode(mask)


def _encode(mask: NDArray[np.bool_]) -> str:
    counts: bytes = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"]
    return counts.decode()


def _classes_apart(tracks: _Tracks) -> None:
    tracks.categories = [1 + (category - 1 + n) % len(SHAPES) for n, category in enumerate(tracks.categories)]


def _lone_target(tracks: _Tracks) -> None:
    tracks.categories[tracks.target] = 1 + tracks.categories[tracks.target] % len(SHAPES)


def _empty_mask(tracks: _Tracks) -> None:
    tracks.masks[tracks.target][2] = tracks.no_pixels


def _tie(tracks: _Tracks) -> None:
    """The last track becomes the target, the first as frequent; as texts, their ids stand the other way round."""
    tracks.target = len(tracks.ids) - 1
    tracks.ids = [10, *tracks.ids[1:-1], 9]
    tracks.annotated[0] = tracks.annotated[-1] = set(range(len(tracks.masks[0])))


def _absent_target(tracks: _Tracks) -> None:
    for frames in tracks.annotated:
        frames.discard(len(tracks.masks[0]) // 2)


_FROM_LASOT = 5
_TRAPS: dict[int, Callable[[_Tracks], None]] = {
    0: _classes_apart,
    1: _lone_target,
    2: _empty_mask,
    3: _tie,
    4: _absent_target,
}
