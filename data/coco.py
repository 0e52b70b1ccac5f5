"""Reads COCO instances files (`instances_train2014.json`) into flat arrays, with a verdict for every annotation.

    images         ids, sizes, file names        one row an image record
    annotations    ids, boxes, image, category   one row an annotation record, and why it cannot be used, if it cannot

600,000 annotations take about 60 MB. Segmentations are parsed and forgotten. The order of the file's keys is free.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.json_stream import stream_arrays

# COCO's floats overshoot the image by rounding; a box further out than this (pixels) was drawn for another image.
_OUTSIDE_TOLERANCE = 1.0
_LARGEST_ID = 2**63 - 1
_LARGEST_SIDE = 2**31 - 1


class Verdict(IntEnum):
    """What became of an annotation: usable so far, or the reason why it was dropped."""

    OK = 0
    MALFORMED = 1
    DUPLICATE_ANNOTATION_ID = 2
    CROWD = 3
    NON_FINITE = 4
    ZERO_AREA = 5
    UNKNOWN_IMAGE = 6
    DUPLICATE_IMAGE_ID = 7
    UNKNOWN_CATEGORY = 8
    OUT_OF_IMAGE = 9
    DUPLICATE_FILE_NAME = 10

    @property
    def reason(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Instances:
    """A COCO file as arrays. Image rows and annotation rows are in the order of the file.

    Shapes: (M,) an image (`image_sizes` (M, 2) is width, height); (N,) an annotation (`boxes` (N, 4)). Boxes are corners in
    original pixels, clipped to the image; they mean something where the verdict is OK, as do `image_rows` (into the
    images) and `category_ids`. `attributes` holds the extra key of that name of the annotation rows that have one.
    """

    path: Path
    image_ids: NDArray[np.int64]
    image_sizes: NDArray[np.int64]
    file_names: list[str]
    annotation_ids: NDArray[np.int64]
    image_rows: NDArray[np.int64]
    category_ids: NDArray[np.int64]
    boxes: NDArray[np.float64]
    verdicts: NDArray[np.uint8]
    categories: dict[int, str]
    attributes: dict[int, dict[str, Any]]
    dropped_images: dict[str, int]


def read_instances(path: str | Path) -> Instances:
    """Read and judge. Raises ValueError, naming the file and the place, when it is not COCO's JSON at all."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"annotation file {path} does not exist")
    images, annotations = _Images(), _Annotations()
    categories: dict[int, str] = {}
    for key, record in stream_arrays(path, ("images", "annotations", "categories")):
        if key == "images":
            images.add(record)
        elif key == "annotations":
            annotations.add(record)
        elif isinstance(record, dict) and _is_id(record.get("id")) and isinstance(record.get("name"), str):
            categories.setdefault(record["id"], record["name"])
    return _judge(path, images, annotations, categories)


# `type(x) is int`, not isinstance: true and false are no ids and no coordinates.
def _is_id(value: object) -> bool:
    return type(value) is int and -_LARGEST_ID <= value <= _LARGEST_ID


def _is_file_name(value: object) -> bool:
    """False, too, for half a surrogate pair, which JSON can spell and nothing can store."""
    return isinstance(value, str) and value.encode(errors="ignore").decode() == value


def _is_side(value: object) -> bool:
    return type(value) is int and 0 < value <= _LARGEST_SIDE


@dataclass
class _Images:
    """Image records as they come."""

    ids: array[int] = field(default_factory=lambda: array("q"))
    sizes: array[int] = field(default_factory=lambda: array("q"))
    file_names: list[str] = field(default_factory=list)
    malformed: int = 0
    malformed_ids: array[int] = field(default_factory=lambda: array("q"))

    def add(self, record: object) -> None:
        if not (isinstance(record, dict) and _is_id(record.get("id"))):
            self.malformed += 1
            return
        if not (_is_side(record.get("width")) and _is_side(record.get("height")) and _is_file_name(record.get("file_name"))):
            self.malformed += 1
            self.malformed_ids.append(record["id"])
            return
        self.ids.append(record["id"])
        self.sizes.extend((record["width"], record["height"]))
        self.file_names.append(record["file_name"])


@dataclass
class _Annotations:
    """Annotation records as they come; a malformed one keeps its row, so that every record is accounted for."""

    ids: array[int] = field(default_factory=lambda: array("q"))
    image_ids: array[int] = field(default_factory=lambda: array("q"))
    category_ids: array[int] = field(default_factory=lambda: array("q"))
    boxes: array[float] = field(default_factory=lambda: array("d"))
    verdicts: array[int] = field(default_factory=lambda: array("B"))
    attributes: dict[int, dict[str, Any]] = field(default_factory=dict)

    def add(self, record: object) -> None:
        box = _coordinates(record["bbox"]) if isinstance(record, dict) and _well_formed(record) else None
        if box is None or not isinstance(record, dict):
            self._append(0, 0, 0, (0.0, 0.0, 0.0, 0.0), Verdict.MALFORMED)
            return
        if isinstance(attributes := record.get("attributes"), dict):
            self.attributes[len(self.ids)] = attributes
        verdict = Verdict.CROWD if record.get("iscrowd", 0) else Verdict.OK
        self._append(record["id"], record["image_id"], record["category_id"], box, verdict)

    def _append(self, id: int, image_id: int, category_id: int, box: Sequence[float], verdict: Verdict) -> None:
        self.ids.append(id)
        self.image_ids.append(image_id)
        self.category_ids.append(category_id)
        self.boxes.extend(box)
        self.verdicts.append(verdict)


def _well_formed(record: dict[str, Any]) -> bool:
    return (
        _is_id(record.get("id"))
        and _is_id(record.get("image_id"))
        and _is_id(record.get("category_id"))
        and record.get("iscrowd", 0) in (0, 1)
        and type(record.get("bbox")) is list
    )


def _coordinates(box: list[Any]) -> list[float] | None:
    """Four numbers as floats, an integer beyond their range as infinite; None when they are not four numbers."""
    if len(box) != 4 or not all(type(value) is float or type(value) is int for value in box):
        return None
    try:
        return [float(value) for value in box]
    except OverflowError:
        return [math.inf] * 4


def _judge(path: Path, images: _Images, annotations: _Annotations, categories: dict[int, str]) -> Instances:
    if not images.ids:
        raise ValueError(f"{path}: not one usable image record ({images.malformed:,} malformed)")
    image_ids_M = np.asarray(images.ids, dtype=np.int64)
    sizes_M2 = np.asarray(images.sizes, dtype=np.int64).reshape(-1, 2)
    ids_N = np.asarray(annotations.ids, dtype=np.int64)
    category_ids_N = np.asarray(annotations.category_ids, dtype=np.int64)
    xywh_N4 = np.asarray(annotations.boxes, dtype=np.float64).reshape(-1, 4)
    verdicts_N = np.array(annotations.verdicts, dtype=np.uint8)

    unique_ids, first_rows, counts = np.unique(image_ids_M, return_index=True, return_counts=True)
    rows_N, known_N = _look_up(np.asarray(annotations.image_ids, dtype=np.int64), unique_ids)
    image_rows_N = first_rows[rows_N]

    def drop(where_N: NDArray[np.bool_] | np.bool_, verdict: Verdict) -> None:
        verdicts_N[where_N & (verdicts_N == Verdict.OK)] = verdict

    drop(_repeated(ids_N, verdicts_N != Verdict.MALFORMED), Verdict.DUPLICATE_ANNOTATION_ID)
    drop(~np.isfinite(xywh_N4).all(axis=1), Verdict.NON_FINITE)
    drop((xywh_N4[:, 2:] <= 0).any(axis=1), Verdict.ZERO_AREA)
    drop(~known_N, Verdict.UNKNOWN_IMAGE)
    # Two records of one id, be one malformed, are two images: nobody can tell which of them a box was drawn on.
    claimed_twice = (counts > 1) | np.isin(unique_ids, np.asarray(images.malformed_ids, dtype=np.int64))
    drop(claimed_twice[rows_N], Verdict.DUPLICATE_IMAGE_ID)
    # One file under two ids would put one image into both splits.
    repeated_files_M = _repeated_names(images.file_names)
    drop(repeated_files_M[image_rows_N], Verdict.DUPLICATE_FILE_NAME)
    drop(~np.isin(category_ids_N, np.fromiter(categories, dtype=np.int64)), Verdict.UNKNOWN_CATEGORY)

    sizes_N2 = sizes_M2[image_rows_N]
    with np.errstate(invalid="ignore", over="ignore"):
        corners_N4 = np.concatenate([xywh_N4[:, :2], xywh_N4[:, :2] + xywh_N4[:, 2:]], axis=1)
    inside_N = (corners_N4[:, :2] >= -_OUTSIDE_TOLERANCE) & (corners_N4[:, 2:] <= sizes_N2 + _OUTSIDE_TOLERANCE)
    drop(~inside_N.all(axis=1), Verdict.OUT_OF_IMAGE)
    boxes_N4 = np.clip(corners_N4, 0.0, np.concatenate([sizes_N2, sizes_N2], axis=1))
    drop((boxes_N4[:, 2:] <= boxes_N4[:, :2]).any(axis=1), Verdict.ZERO_AREA)

    dropped = {
        "malformed_image": images.malformed,
        "duplicate_image_id": int(counts[claimed_twice].sum()),
        "duplicate_file_name": int(repeated_files_M.sum()),
    }
    return Instances(
        path=path,
        image_ids=image_ids_M,
        image_sizes=sizes_M2,
        file_names=images.file_names,
        annotation_ids=ids_N,
        image_rows=image_rows_N,
        category_ids=category_ids_N,
        boxes=boxes_N4,
        verdicts=verdicts_N,
        categories=categories,
        attributes=annotations.attributes,
        dropped_images={reason: count for reason, count in dropped.items() if count},
    )


def _look_up(wanted_N: NDArray[np.int64], sorted_ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Position of every id in `sorted_ids`, and whether it is there at all (else the position means nothing)."""
    positions = np.minimum(np.searchsorted(sorted_ids, wanted_N), len(sorted_ids) - 1).astype(np.int64)
    return positions, sorted_ids[positions] == wanted_N


def _repeated_names(names: list[str]) -> NDArray[np.bool_]:
    """True for every name but the first of its kind."""
    first_rows = {name: row for row, name in reversed(list(enumerate(names)))}
    return np.array([first_rows[name] != row for row, name in enumerate(names)], dtype=np.bool_)


def _repeated(ids_N: NDArray[np.int64], counted_N: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """True for every record but the first of its id, among the `counted` ones."""
    rows = np.flatnonzero(counted_N)
    _, first = np.unique(ids_N[rows], return_index=True)
    repeated_N = counted_N.copy()
    repeated_N[rows[first]] = False
    return repeated_N
