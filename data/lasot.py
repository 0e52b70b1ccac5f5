"""Reads LaSOT in its official layout.

    <root>/testing_set.txt                            names of the test videos, one a line
    <root>/airplane/airplane-1/img/00000001.jpg …
                              /groundtruth.txt        x,y,width,height a line: integers, the first pixel is (1, 1)
                              /full_occlusion.txt     one line: 0,0,1,… a number a frame
                              /out_of_view.txt        likewise

Splits: "test" (the videos of the list), "train" (all others), "all" (needs no list).

What the 3.5 million lines of the official annotations hold, and what becomes of it:

    x, y below 1 (down to −38)          kept; whoever makes a box clips it
    flagged frames                      98,000, of which 71,708 carry a box with area: corners and absence are both given
    boxes without area ("0,0,0,0")      26,267, five of them of negative size ("1,1,-1,-1"); all but seven are flagged.
                                        Corners are given as they stand; an unflagged one counts as unannotated

A groundtruth.txt without a line end is refused as cut off where both flag files have one. Where one of them
lacks it too, nothing tells a whole "12,34,56,7" from "12,34,56,78" cut by one character; nor can a name be noticed that is
missing from testing_set.txt, or cut short before the list's end: its video counts as one for training.

The first pixel is (1, 1) by word of the data set's author (LaSOT_Evaluation_Toolkit, issue 14).
"""

from __future__ import annotations

import re
from pathlib import Path

from data.track import Absence, Corners, Track, TrackError, TrackFrame, TrackList
from data.track_files import has_area, integer, numbered_images, numbers_of_one_line, one_based_boxes, read_lines, read_names

LAYOUT = "<root>/<class>/<class>-<number>/{img/00000001.jpg, groundtruth.txt, full_occlusion.txt, out_of_view.txt}"
LIST_NAME = "testing_set.txt"
LIST_LAYOUT = "<root>/testing_set.txt with a video's name (airplane-1) a line; the split 'all' needs no list"
SPLITS = ("train", "test", "all")

_VIDEO = re.compile(r"(?P<category>.+)-(?P<number>[0-9]+)")


def read_lasot(root: Path, split: str) -> TrackList:
    """The videos of a split. Raises ValueError for an unknown split, and when root or list is not in LaSOT's layout."""
    if split not in SPLITS:
        raise ValueError(f"LaSOT has no split {split!r}; choose from {', '.join(SPLITS)}")
    if split == "test":
        return TrackList(_test_folders(root), read_video, (root / LIST_NAME,))
    folders = _video_folders(root)
    files: tuple[Path, ...] = ()
    if split == "train":
        testing = _test_folders(root)
        _refuse_cut_list(root, testing)
        test_folders = set(testing)
        folders = [folder for folder in folders if folder not in test_folders]
        files = (root / LIST_NAME,)
    if not folders:
        raise ValueError(f"no videos of the split {split!r} under {root}; expected the layout {LAYOUT}")
    return TrackList(folders, read_video, files)


def read_video(folder: Path) -> Track:
    """The track of one video's folder. Raises TrackError naming file, line and fault."""
    groundtruth = read_lines(folder / "groundtruth.txt")
    boxes = one_based_boxes(groundtruth, integer)
    names = [f"{number:08d}.jpg" for number in range(1, len(boxes) + 1)]
    images = numbered_images(folder / "img", names, groundtruth.path)
    occluded, occlusion_ends = numbers_of_one_line(folder / "full_occlusion.txt", len(boxes))
    outside, view_ends = numbers_of_one_line(folder / "out_of_view.txt", len(boxes))
    if not groundtruth.terminated and occlusion_ends and view_ends:
        # 12,34,56,78 cut by one character is a box, too.
        raise groundtruth.fault(
            len(boxes), "no line end, though the video's other files have one: cut off? Add a line end if it is whole"
        )
    frames = tuple(
        TrackFrame(image, corners, _absence(corners, bool(hidden), bool(gone)))
        for image, corners, hidden, gone in zip(images, boxes, occluded, outside, strict=True)
    )
    return Track(id=folder.name, source="lasot", video=folder.name, category=folder.parent.name, frames=frames)


def _absence(corners: Corners, occluded: bool, outside: bool) -> Absence | None:
    if outside:
        return "out_of_view"
    if occluded:
        return "full_occlusion"
    return None if has_area(corners) else "unannotated"


def _test_folders(root: Path) -> list[Path]:
    """Of the test videos; whether they are there is found when they are read."""
    place = root / LIST_NAME
    folders = []
    for name in read_names(place, LIST_LAYOUT):
        match = _VIDEO.fullmatch(name)
        if match is None:
            raise TrackError(f"{place}: expected names like airplane-1, got {name!r}")
        folders.append(root / match["category"] / name)
    return folders


def _refuse_cut_list(root: Path, testing: list[Path]) -> None:
    """A last name that was cut short would let its video pass for training. Others may be absent, as in a part of LaSOT."""
    place, last = root / LIST_NAME, testing[-1]
    if not read_lines(place).terminated and last.parent.is_dir() and not last.is_dir():
        raise ValueError(
            f"{place} ends with {last.name}, without a line end, and {last.parent} has no such video: was the list cut off? "
            "Complete it, or add a line end if it is whole"
        )


def _video_folders(root: Path) -> list[Path]:
    """Every <class>/<class>-<number>, by class and number. Other folders are not LaSOT's and are left alone."""
    if not root.is_dir():
        raise ValueError(f"no folder {root}; expected the layout {LAYOUT}")
    numbered: list[tuple[str, int, Path]] = []
    for category in root.iterdir():
        if not category.is_dir():
            continue
        for folder in category.iterdir():
            match = _VIDEO.fullmatch(folder.name)
            if match is not None and match["category"] == category.name and folder.is_dir():
                numbered.append((category.name, int(match["number"]), folder))
    return [folder for _, _, folder in sorted(numbered)]
