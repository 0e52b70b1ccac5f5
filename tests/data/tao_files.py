"""Writes small folders in TAO's and in BURST's on-disk format for tests, right or damaged on purpose."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

Record = dict[str, Any]
# (x1, y1, x2, y2), half-open
Rectangle = tuple[int, int, int, int]


@dataclass
class TaoFolder:
    """Records to write; change them, then `write`. Images are black, 60 × 40."""

    root: Path
    images: list[Record] = field(default_factory=list)
    videos: list[Record] = field(default_factory=list)
    tracks: list[Record] = field(default_factory=list)
    annotations: list[Record] = field(default_factory=list)
    categories: list[Record] = field(default_factory=lambda: [{"id": 347, "name": "cup"}, {"id": 5, "name": "dog"}])

    @property
    def file(self) -> Path:
        return self.root / "annotations" / "train.json"

    def path(self, video: int, frame: int) -> Path:
        return self.root / "frames" / self.file_name(video, frame)

    @staticmethod
    def file_name(video: int, frame: int) -> str:
        return f"train/BDD/v{video}/frame{30 * frame + 1:04d}.jpg"

    def add_video(self, video: int, frames: int) -> None:
        """Image f of video v gets the id 100 v + f and the frame_index 30 f."""
        self.videos.append({"id": video, "name": f"train/BDD/v{video}", "width": 60, "height": 40})
        for frame in range(frames):
            path = self.path(video, frame)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (60, 40)).save(path)
            place = {"video_id": video, "frame_index": 30 * frame, "file_name": self.file_name(video, frame)}
            self.images.append({"id": 100 * video + frame, **place, "width": 60, "height": 40})

    def add_track(self, track: int, video: int, boxes: Mapping[int, Sequence[float]], category: int = 347) -> None:
        """`boxes` are xywh by frame."""
        self.tracks.append({"id": track, "video_id": video, "category_id": category})
        for frame, box in boxes.items():
            of_what = {"image_id": 100 * video + frame, "track_id": track, "category_id": category}
            self.annotations.append({"id": len(self.annotations) + 1, **of_what, "bbox": list(box), "iscrowd": 0})

    def write(self) -> Path:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        names = ("images", "videos", "tracks", "annotations", "categories")
        self.file.write_text(json.dumps({name: vars(self)[name] for name in names}))
        return self.root


@dataclass
class BurstFolder:
    """Sequences to write; change them, then `write`. Images are black, 12 × 8."""

    root: Path
    split: str = "val"
    sequences: list[Record] = field(default_factory=list)
    categories: list[Record] = field(default_factory=lambda: [{"id": 347, "name": "cup"}, {"id": 5, "name": "dog"}])

    @property
    def file(self) -> Path:
        return self.root / "annotations" / self.split / "all_classes.json"

    def path(self, name: str, frame: int, dataset: str = "BDD") -> Path:
        return self.root / "frames" / self.split / dataset / name / f"{frame}.jpg"

    def add_sequence(
        self,
        name: str,
        categories: Mapping[str, int],
        masks: Sequence[Mapping[str, Rectangle | None]],
        dataset: str = "BDD",
    ) -> Record:
        """`masks[f]` are rectangles by track id, None for a mask without pixels."""
        images = [self.path(name, frame, dataset) for frame in range(len(masks))]
        images[0].parent.mkdir(parents=True, exist_ok=True)
        for image in images:
            Image.new("RGB", (12, 8)).save(image)
        record: Record = {
            "id": len(self.sequences),
            "dataset": dataset,
            "seq_name": name,
            "width": 12,
            "height": 8,
            "fps": 1,
            "annotated_image_paths": [image.name for image in images],
            "all_image_paths": [image.name for image in images],
            "track_category_ids": dict(categories),
            "segmentations": [{track: {"rle": rle(box), "is_gt": True} for track, box in each.items()} for each in masks],
        }
        self.sequences.append(record)
        return record

    def write(self) -> Path:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        content = {"split": self.split, "sequences": self.sequences, "categories": self.categories}
        self.file.write_text(json.dumps(content))
        return self.root


def rle(box: Rectangle | None, width: int = 12, height: int = 8) -> str:
    mask = np.zeros((height, width), dtype=np.uint8, order="F")
    if box is not None:
        x1, y1, x2, y2 = box
        mask[y1:y2, x1:x2] = 1
    counts: bytes = coco_mask.encode(mask)["counts"]
    return counts.decode()
