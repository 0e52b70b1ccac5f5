"""Reads the lists of episodes that IPLoc published (github.com/SivanDoveh/IPLoc, data/*.json) straight into samples.

    [{"element": "airplane",
      "image_path": ["data/ICL_tracking/video/LASOT/airplane/airplane-1/img/00000001.jpg", …, ".../00002788.jpg"],
      "bbox": ["[367, 101, 408, 117]", …, "[185, 150, 542, 260]"],
      "image_id": [0, 1]}, …]

The supports come first, the query is the last. Boxes are texts of corners (x1, y1, x2, y2) in pixels of the image file, in
all published lists: PerSeg's exceed 1000, and IPLoc's own evaluation divides by the image's size. They are taken as they
stand; LaSOT's keep the first pixel at (1, 1), as LaSOT's files do, since that is what the published figures were scored on.

Not every published record can be asked as a question: 6 of 144 LaSOT queries and some supports have no box ("[0, 0, 0, 0]"),
20 of 976 PDM records have no support. A support without a box, or with one that is mostly outside of its image, is left out
(metadata["dropped_supports"]); the sample still belongs to its list's shots (metadata["shots"]), and a mean over the list
counts it there. What else is wanting makes an `UnusableRecord`, which a mean over the whole list, as published, counts as 0:
such records are counted by build.json, and the notes of an evaluation say how many could be asked.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from data.box import Box
from data.episodes import clip_corners, has_area
from data.image_file import ImageFileError, image_size
from data.json_records import array, four_numbers, is_file, read_json, text
from data.prompts import focus_prompt
from data.sample import EncodedImage, Sample
from data.track import Corners, TrackError

# What a path may start with, beside the whole of it: where IPLoc's README has the data sets put.
_PREFIXES = (
    "",
    "data/ICL_tracking/video/",
    "data/ICL_tracking/video/LASOT/",
    "data/ICL_tracking/video/per_seg/",
)
# Less of a box than this inside its image, and it was drawn for another one.
_LEAST_INSIDE = 0.5


@dataclass(frozen=True, slots=True)
class UnusableRecord:
    """A sound record of the list, number `index` from 0, that is no question with an answer; `reason` says why."""

    index: int
    reason: str


@dataclass(frozen=True, slots=True)
class IplocRecord:
    """One record as it stands in the list; the last image and box are the query's."""

    list_name: str
    index: int
    element: str
    images: tuple[Path, ...]
    boxes: tuple[Corners, ...]
    video: str

    @property
    def where(self) -> str:
        return f"{self.list_name}: record {self.index}"


def iploc_records(path: Path, images_root: Path) -> list[IplocRecord]:
    """The records of a list, their images found.

    `images_root` is the folder that the list's paths start from, or one of those that hold the data sets themselves.
    Raises TrackError, naming the record, for a list that is damaged and for an image that is missing.
    """
    records = read_json(path)
    if not isinstance(records, list) or not records:
        raise TrackError(f'{path}: expected an array of records {{"element", "image_path", "bbox"}}, as IPLoc\'s lists are')
    if not images_root.is_dir():
        raise TrackError(
            f"image folder {images_root} does not exist; {path.name} needs the folder its image paths start from"
        )
    return [_record(path, index, record, images_root) for index, record in enumerate(records)]


def _record(path: Path, index: int, record: Any, images_root: Path) -> IplocRecord:
    where = f"{path}: record {index}"
    element = text(record, "element", where)
    names, boxes = array(record, "image_path", where), array(record, "bbox", where)
    if not names or len(names) != len(boxes):
        raise TrackError(f"{where}: {len(names)} images, but {len(boxes)} boxes")
    if not all(isinstance(name, str) and name for name in names):
        raise TrackError(f"{where}: image_path must hold texts")
    return IplocRecord(
        list_name=path.name,
        index=index,
        element=element,
        images=tuple(_find(images_root, name, where) for name in names),
        boxes=tuple(_corners(box, where) for box in boxes),
        video=str(PurePosixPath(names[-1]).parent),
    )


def _find(images_root: Path, name: str, where: str) -> Path:
    """The image's file, with or without the folders that all paths of its data set start with."""
    places = [images_root / name.removeprefix(prefix) for prefix in _PREFIXES if name.startswith(prefix)]
    found = next(filter(is_file, places), None)
    if found is None:
        raise TrackError(f"{where}: the image is missing; looked for {' and '.join(map(str, places))}")
    return found


def _corners(box: Any, where: str) -> Corners:
    """The corners that the text `[x1, y1, x2, y2]` holds."""
    if not isinstance(box, str):
        raise TrackError(f"{where}: a box must be a text such as '[367, 101, 408, 117]', got {box!r:.60}")
    try:
        values = json.loads(box)
    except (ValueError, RecursionError) as error:
        raise TrackError(f"{where}: a box must be a text such as '[367, 101, 408, 117]', got {box!r:.60}") from error
    x1, y1, x2, y2 = four_numbers(values, where)
    if x2 < x1 or y2 < y1:
        raise TrackError(f"{where}: {box} is no box of corners, x2 or y2 is the smaller one")
    return (x1, y1, x2, y2)


def make_sample(record: IplocRecord) -> Sample | UnusableRecord:
    """The question of a record, or why there is none. Opens the images' headers; raises TrackError when one is damaged."""
    encoded = tuple(_encoded(image, record.where) for image in record.images)
    boxes = [_usable(corners, image) for corners, image in zip(record.boxes, encoded, strict=True)]
    supports = [(image, box) for image, box in zip(encoded[:-1], boxes[:-1], strict=True) if box is not None]
    target = boxes[-1]
    if target is None:
        return UnusableRecord(record.index, _no_target(record))
    if not supports:
        return UnusableRecord(record.index, "no support has a box" if len(encoded) > 1 else "there is no support")
    return Sample(
        id=f"{Path(record.list_name).stem}/{record.index}",
        source="iploc",
        images=(*(image for image, _ in supports), encoded[-1]),
        prompt=focus_prompt(tuple(box for _, box in supports)),
        target=target,
        target_image=len(supports),
        metadata={
            "dataset": "iploc",
            "list": record.list_name,
            "record": record.index,
            "category": record.element,
            "video": record.video,
            "shots": len(record.images) - 1,
            "dropped_supports": [place for place, box in enumerate(boxes[:-1]) if box is None],
        },
    )


def _encoded(image: Path, where: str) -> EncodedImage:
    try:
        width, height = image_size(image)
    except ImageFileError as error:
        raise TrackError(f"{where}: {error}") from error
    return EncodedImage(width, height, path=str(image))


def _usable(corners: Corners, image: EncodedImage) -> Box | None:
    """The box inside its image; None where it has no area, and where most of it is outside."""
    x1, y1, x2, y2 = corners
    clipped = clip_corners(corners, image.frame)
    return clipped if clipped is not None and clipped.area >= _LEAST_INSIDE * (x2 - x1) * (y2 - y1) else None


def _no_target(record: IplocRecord) -> str:
    corners = record.boxes[-1]
    if has_area(corners):
        return f"the query's box {list(corners)} lies outside of its image {record.images[-1]}"
    return f"the query has no box: {list(corners)}"
