"""Small folders in the layouts of LaSOT, GOT-10k and PerSeg for tests, written by hand; right, to be damaged by the test.

Images of LaSOT and GOT-10k are empty files: their readers never open one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from data.track import Track

META_INFO = """[METAINFO]
url: https://example.org/watch?v=P-fKM
begin: 00:00:01
end: 00:00:10
anno_fps: 10Hz
object_class: ctenophore
motion_class: swimming
major_class: invertebrate
root_class: animal
motion_adverb: slowly
resolution: (1920, 1080)
"""


def lasot_video(
    root: Path,
    name: str = "airplane-1",
    boxes: Sequence[str] = ("1,1,10,20", "5,7,30,40", "11,21,3,4"),
    occluded: str | None = None,
    outside: str | None = None,
) -> Path:
    """A video of as many frames as boxes, nothing flagged unless told; returns its folder."""
    folder = root / name.rpartition("-")[0] / name
    _empty_images(folder / "img", len(boxes))
    unflagged = ",".join("0" for _ in boxes)
    (folder / "groundtruth.txt").write_text("".join(f"{box}\n" for box in boxes))
    (folder / "full_occlusion.txt").write_text(unflagged if occluded is None else occluded)
    (folder / "out_of_view.txt").write_text(unflagged if outside is None else outside)
    return folder


def got10k_video(
    root: Path,
    name: str = "GOT-10k_Val_000001",
    boxes: Sequence[str] = ("1.0000,1.0000,10.5000,20.0000", "5.2500,7.0000,30.0000,40.0000", "11,21,3,4"),
    absence: str | None = None,
    cover: str | None = None,
) -> Path:
    """A fully visible video of "val", listed alone; returns its folder. Labels like "001" become a digit a line."""
    folder = root / "val" / name
    _empty_images(folder, len(boxes))
    (root / "val" / "list.txt").write_text(f"{name}\n")
    (folder / "groundtruth.txt").write_text("".join(f"{box}\n" for box in boxes))
    (folder / "absence.label").write_text("".join(f"{digit}\n" for digit in absence or "0" * len(boxes)))
    (folder / "cover.label").write_text("".join(f"{digit}\n" for digit in cover or "8" * len(boxes)))
    (folder / "cut_by_image.label").write_text("0\n" * len(boxes))
    (folder / "meta_info.ini").write_text(META_INFO)
    return folder


def _empty_images(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for number in range(1, count + 1):
        (folder / f"{number:08d}.jpg").touch()


def perseg_album(root: Path, masks: Sequence[Image.Image], name: str = "backpack_dog") -> Path:
    """An album with a grey picture of its mask's size for every mask; returns the folder of pictures."""
    images, annotations = root / "Images" / name, root / "Annotations" / name
    images.mkdir(parents=True)
    annotations.mkdir(parents=True)
    for number, mask in enumerate(masks):
        Image.new("RGB", mask.size, (90, 90, 90)).save(images / f"{number:02d}.jpg")
        mask.save(annotations / f"{number:02d}.png")
    return images


def color_mask(
    size: tuple[int, int], foreground: tuple[int, int, int, int] | None, color: tuple[int, int, int] = (128, 0, 0)
) -> Image.Image:
    """`foreground` (first column, first row, last column, last row), inclusive, on black; None paints nothing."""
    pixels = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    if foreground is not None:
        left, top, right, bottom = foreground
        pixels[top : bottom + 1, left : right + 1] = color
    return Image.fromarray(pixels)


def corners(track: Track) -> list[tuple[float, ...] | None]:
    return [frame.corners for frame in track.frames]


def absences(track: Track) -> list[str | None]:
    return [frame.absence for frame in track.frames]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, by its path in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
