"""Writes small folders in COCO's on-disk format for tests, right or damaged on purpose."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Record = dict[str, Any]


@dataclass
class CocoFolder:
    """Records to write; change them, then `write`. Image `i` is `<i>.png`: noise, so that every crop is unlike any other."""

    root: Path
    image_records: list[Record] = field(default_factory=list)
    annotation_records: list[Any] = field(default_factory=list)
    category_records: list[Record] = field(default_factory=lambda: [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}])

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def annotations(self) -> Path:
        return self.root / "instances.json"

    def add_image(self, image_id: int, width: int = 200, height: int = 150) -> None:
        self.images.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(image_id).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(noise).save(self.images / f"{image_id}.png")
        self.image_records.append({"id": image_id, "file_name": f"{image_id}.png", "width": width, "height": height})

    def add_box(self, image_id: int, box: Sequence[float], category: int = 1, **extra: object) -> Record:
        record = {"id": len(self.annotation_records) + 1, "image_id": image_id, "category_id": category, "bbox": list(box)}
        self.annotation_records.append(record | {"iscrowd": 0, "area": 1.0} | extra)
        return self.annotation_records[-1]

    def write(self) -> Path:
        self.images.mkdir(parents=True, exist_ok=True)
        content = {
            "info": {"year": 2014},
            "images": self.image_records,
            "annotations": self.annotation_records,
            "categories": self.category_records,
        }
        self.annotations.write_text(json.dumps(content))
        return self.annotations


def many_scenes(root: Path, images: int, boxes: int = 4) -> CocoFolder:
    """Scenes of 200×150 with boxes of 18 to 60 pixels in both categories: 1.1 to 12 % of the image."""
    folder = CocoFolder(root)
    rng = np.random.default_rng(1)
    for image_id in range(1, images + 1):
        folder.add_image(image_id)
        for _ in range(boxes):
            width, height = (rng.integers(18, 60, 2) + rng.random(2)).tolist()
            x, y = (rng.random(2) * [199 - width, 149 - height]).tolist()
            folder.add_box(image_id, [round(v, 2) for v in (x, y, width, height)], category=int(rng.integers(1, 3)))
    folder.write()
    return folder
