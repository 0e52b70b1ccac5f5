"""Reads GOT-10k in its official layout.

    <root>/{train,val}/list.txt                          names of the videos, one a line
    <root>/train/GOT-10k_Train_000001/00000001.jpg …
                                     /groundtruth.txt    x,y,width,height a line: decimals, the first pixel is (1, 1)
                                     /meta_info.ini      "object_class: dinghy" (or with "="); all else in it is optional
                                     /absence.label      0 or 1 a line: 1 where the target is absent
                                     /cover.label        0 to 8 a line: how much of it is visible, 8 all, 0 nothing
                                     /cut_by_image.label 0 or 1 a line; not used here

Splits: "train" and "val". "test" is refused: its videos come with the first frame's box alone.

Boxes may leave the image, and frames without a target carry `-1,-1,-1,-1` or a box without area: corners are given as they
stand, and absence says why there is nothing to see — "absent" by absence.label, else "full_occlusion" by a cover of 0 (the
official evaluation leaves such frames out, too), else "unannotated" if the box has no area. The size in meta_info.ini is
metadata only: a few official videos change size midway.

The first pixel is (1, 1) by word of the data set's author (got-10k/toolkit, issue 6).
"""

from __future__ import annotations

import re
from pathlib import Path

from data.track import Absence, Corners, Track, TrackFrame, TrackList
from data.track_files import (
    decimal,
    has_area,
    numbered_images,
    numbers_of_lines,
    one_based_boxes,
    read_lines,
    read_names,
    refuse_cut_decimals,
)

LAYOUT = "<root>/{train,val}/list.txt and <root>/train/GOT-10k_Train_000001/{00000001.jpg, groundtruth.txt, …}"
SPLITS = ("train", "val")

_HIGHEST_COVER = 8
_SEPARATOR = re.compile("[:=]")
# What official files say first.
_BEFORE_OBJECT_CLASS = {"url", "begin", "end", "anno_fps"}
_METADATA = ("motion_class", "major_class", "root_class", "motion_adverb", "resolution")


def read_got10k(root: Path, split: str) -> TrackList:
    """The videos of a split's list. Raises ValueError for an unknown split, and when root is not in GOT-10k's layout."""
    if split == "test":
        raise ValueError("GOT-10k's test split gives the first frame's box alone; evaluate on val (180 videos)")
    if split not in SPLITS:
        raise ValueError(f"GOT-10k has no split {split!r}; choose from {', '.join(SPLITS)}")
    listed = root / split / "list.txt"
    names = read_names(listed, LAYOUT)
    return TrackList([root / split / name for name in names], read_video, (listed,))


def read_video(folder: Path) -> Track:
    """The track of one video's folder. Raises TrackError naming file, line and fault."""
    groundtruth = read_lines(folder / "groundtruth.txt")
    boxes = one_based_boxes(groundtruth, decimal)
    refuse_cut_decimals(groundtruth)
    names = [f"{number:08d}.jpg" for number in range(1, len(boxes) + 1)]
    images = numbered_images(folder, names, groundtruth.path)
    absent = numbers_of_lines(folder / "absence.label", len(boxes))
    cover = numbers_of_lines(folder / "cover.label", len(boxes), highest=_HIGHEST_COVER)
    frames = tuple(
        TrackFrame(image, corners, _absence(corners, bool(gone), visible))
        for image, corners, gone, visible in zip(images, boxes, absent, cover, strict=True)
    )
    described = _read_description(folder / "meta_info.ini")
    metadata = {key: described[key] for key in _METADATA if key in described}
    return Track(folder.name, "got10k", folder.name, described["object_class"], frames, metadata)


def _absence(corners: Corners, gone: bool, cover: int) -> Absence | None:
    if gone:
        return "absent"
    if cover == 0:
        return "full_occlusion"
    return None if has_area(corners) else "unannotated"


def _read_description(path: Path) -> dict[str, str]:
    """The values of meta_info.ini that are not empty, from lines `key: value` or `key = value`; object_class is among them.

    Other lines say nothing. Official files go on after object_class: one that ends in it, without a line end, was cut.
    """
    lines = read_lines(path)
    described: dict[str, str] = {}
    last_key = ""
    for line, text in enumerate(lines.texts, 1):
        last_key, value = (*(part.strip() for part in _SEPARATOR.split(text, maxsplit=1)), "")[:2]
        if last_key == "object_class" in described:
            raise lines.fault(line, "a second object_class")
        if value:
            described[last_key] = value
    if "object_class" not in described:
        raise lines.fault(len(lines.texts), "the file ends without an object_class: add the line 'object_class: <category>'")
    if not lines.terminated and last_key == "object_class" and described.keys() >= _BEFORE_OBJECT_CLASS:
        raise lines.fault(len(lines.texts), "the file ends inside its object_class: cut off? Add a line end if it is whole")
    return described
