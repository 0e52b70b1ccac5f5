"""Writes synthetic videos in TAO's layout: one JSON file a split, frames at one a second, several tracks a video.

    ROOT/annotations/train.json             images, videos, tracks, annotations, categories
    ROOT/frames/train/YFCC100M/v_0f3c…/frame0001.jpg, frame0031.jpg …

The target of a video is the track with the most boxes (see `labelled_video`). With `traps`, annotations are made as
awkward as TAO's own, pixels unchanged; of every ten videos

    video 0    all tracks name a category that was merged into another
    video 1    the target's box of the first frame begins left of and above the image
    video 2    the target's box of the third frame is empty
    video 3    another track has as many boxes as the target; the target's id is smaller
    video 4    no track has a box in the middle frame: the target is absent there
    all        records in no order

Video i depends on (seed, photographs, i) alone: same seed, same bytes, whatever the number of workers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data.box import Box
from data.generators.labelled_video import LabelledVideo, VideoFiles, write_video
from data.parallel import WorkerPool
from data.photos import Split
from data.shapes import SHAPES
from data.synthetic import SceneSpec
from data.synthetic_video import VideoSpec

TaoSplit = Literal["train", "validation"]
Record = dict[str, Any]

# The frames of TAO's validation.json lie under frames/val.
_FRAME_FOLDERS: dict[TaoSplit, str] = {"train": "train", "validation": "val"}
_SOURCE = "YFCC100M"
_FRAMES_PER_SECOND = 30
# A merged category's id is this much above that of the category which it became.
_MERGED = 1000
_TRAP_PERIOD = 10


@dataclass
class _Tracks:
    """The tracks of one video by rising id; `boxes` are [x, y, width, height] of every frame, annotated or not."""

    categories: list[int]
    boxes: list[list[list[float]]]
    annotated: list[set[int]]
    target: int


def write_tao(
    root: Path,
    videos: int,
    seed: int,
    split: TaoSplit = "train",
    photographs: Split = "train",
    spec: VideoSpec | None = None,
    traps: bool = False,
    workers: int = 1,
) -> Path:
    """Write the split `split` of `videos` videos under `root`; returns the annotation file."""
    spec = spec or VideoSpec()
    annotation_file = root / "annotations" / f"{split}.json"
    annotation_file.parent.mkdir(parents=True, exist_ok=True)
    names = [_video_name(split, seed, index) for index in range(videos)]
    files = [
        VideoFiles(index, tuple(root / "frames" / name / _frame_file(frame) for frame in range(spec.frames)))
        for index, name in enumerate(names)
    ]
    content = _Content(spec)
    with WorkerPool(workers) as pool:
        rendered = pool.map(partial(write_video, spec=spec, seed=seed, photographs=photographs), files)
        for index, (name, labelled) in enumerate(zip(names, rendered, strict=True)):
            tracks = _tracks(labelled)
            if traps and index % _TRAP_PERIOD in _TRAPS:
                _TRAPS[index % _TRAP_PERIOD](tracks)
            content.add_video(name, tracks)
    if traps:
        content.shuffle(np.random.default_rng([seed, videos]))
    annotation_file.write_text(json.dumps(content.as_json(f"Sightline synthetic videos, {split}, seed {seed}")))
    return annotation_file


def _video_name(split: TaoSplit, seed: int, index: int) -> str:
    digest = hashlib.md5(f"{split} {seed} {index}".encode(), usedforsecurity=False).hexdigest()
    return f"{_FRAME_FOLDERS[split]}/{_SOURCE}/v_{digest}"


def _frame_file(frame: int) -> str:
    return f"frame{_FRAMES_PER_SECOND * frame + 1:04d}.jpg"


def _tracks(labelled: LabelledVideo) -> _Tracks:
    by_object = list(zip(*labelled.objects, strict=True))
    return _Tracks(
        categories=[1 + SHAPES.index(painted[0].shape) for painted in by_object],
        boxes=[[_xywh(shown.box) for shown in painted] for painted in by_object],
        annotated=[set(frames) for frames in labelled.annotated],
        target=labelled.target,
    )


def _xywh(box: Box) -> list[float]:
    return [box.x1, box.y1, box.x2 - box.x1, box.y2 - box.y1]


def _merged_category(tracks: _Tracks) -> None:
    tracks.categories = [_MERGED + category for category in tracks.categories]


def _negative_box(tracks: _Tracks) -> None:
    x, y, width, height = tracks.boxes[tracks.target][0]
    tracks.boxes[tracks.target][0] = [-5, -3, x + width + 5, y + height + 3]


def _empty_box(tracks: _Tracks) -> None:
    x, y, _, height = tracks.boxes[tracks.target][2]
    tracks.boxes[tracks.target][2] = [x, y, 0, height]


def _tie(tracks: _Tracks) -> None:
    """The first track becomes the target, and the second, if there is one, as frequent."""
    tracks.target = 0
    tracks.annotated = [
        set(range(len(boxes))) if number < 2 else frames
        for number, (boxes, frames) in enumerate(zip(tracks.boxes, tracks.annotated, strict=True))
    ]


def _absent_target(tracks: _Tracks) -> None:
    for frames in tracks.annotated:
        frames.discard(len(tracks.boxes[0]) // 2)


_TRAPS: dict[int, Callable[[_Tracks], None]] = {
    0: _merged_category,
    1: _negative_box,
    2: _empty_box,
    3: _tie,
    4: _absent_target,
}


class _Content:
    """The arrays of the annotation file; ids count from 1 through the whole file."""

    def __init__(self, spec: VideoSpec) -> None:
        self.spec = spec
        self.images: list[Record] = []
        self.videos: list[Record] = []
        self.tracks: list[Record] = []
        self.annotations: list[Record] = []

    def add_video(self, name: str, tracks: _Tracks) -> None:
        video_id, first_image = len(self.videos) + 1, len(self.images) + 1
        size = _size(self.spec.scene)
        self.videos.append({"id": video_id, "name": name, **size, "neg_category_ids": [], "not_exhaustive_category_ids": []})
        for frame in range(self.spec.frames):
            place = {"video": name, "video_id": video_id, "frame_index": _FRAMES_PER_SECOND * frame}
            self.images.append({"id": first_image + frame, **place, "file_name": f"{name}/{_frame_file(frame)}", **size})
        for category, boxes, frames in zip(tracks.categories, tracks.boxes, tracks.annotated, strict=True):
            track = {"track_id": len(self.tracks) + 1, "category_id": category, "video_id": video_id}
            self.tracks.append({"id": track["track_id"], "category_id": category, "video_id": video_id})
            for frame in sorted(frames):
                box = {"bbox": boxes[frame], "area": boxes[frame][2] * boxes[frame][3], "iscrowd": 0}
                record = {"id": len(self.annotations) + 1, "image_id": first_image + frame, **track, **box}
                self.annotations.append(record)

    def shuffle(self, rng: np.random.Generator) -> None:
        for records in (self.images, self.videos, self.tracks, self.annotations):
            records[:] = [records[place] for place in rng.permutation(len(records))]

    def as_json(self, description: str) -> Record:
        return {
            "info": {"description": description},
            "licenses": [{"id": 1, "name": "generated; backgrounds from scikit-image and scikit-learn", "url": ""}],
            "images": self.images,
            "videos": self.videos,
            "tracks": self.tracks,
            "annotations": self.annotations,
            "categories": _categories(),
        }


def _size(scene: SceneSpec) -> dict[str, int]:
    return {"width": scene.width, "height": scene.height}


def _categories() -> list[Record]:
    """Every shape, and of every shape a near-synonym that was merged into it; TAO lists both."""
    survivors: list[Record] = [{"id": 1 + n, "name": shape, "synset": "unknown"} for n, shape in enumerate(SHAPES)]
    merged = [{"id": _MERGED + known["id"], "name": f"{known['name']}_shape", "synset": "unknown"} for known in survivors]
    return [{**known, "merged": [synonym]} for known, synonym in zip(survivors, merged, strict=True)] + merged
