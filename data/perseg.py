"""Reads PerSeg in its official layout: albums of one object each, with a mask a picture.

    <root>/Images/backpack_dog/00.jpg, 01.jpg …
    <root>/Annotations/backpack_dog/00.png …        colour masks: the object is where the grey value is above 0

The box of a frame is the mask's bounding box, half-open: x2 is one more than the last column. A mask without foreground is a
frame whose target is "absent". PerSeg is a test set: its splits "test" and "all" are the same, and there is no other.

The mask has to be as large as its picture is stored. A picture that its EXIF says to turn is refused: the data set's own
code turns it, everything downstream here does not.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from PIL import Image

from data.image_file import ImageFileError, image_size, load_image
from data.track import Corners, Track, TrackError, TrackFrame, TrackList
from data.track_files import numbered_images

LAYOUT = "<root>/Images/<object>/00.jpg and <root>/Annotations/<object>/00.png"
SPLITS = ("test", "all")

_MASK_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")
_ORIENTATION_TAG = 0x0112
_UPRIGHT = 1


def read_perseg(root: Path, split: str) -> TrackList:
    """The albums. Raises ValueError for another split than "test" and "all", and when root is not in PerSeg's layout."""
    if split not in SPLITS:
        raise ValueError(f"PerSeg is held out and has no split {split!r}; choose from {', '.join(SPLITS)}")
    albums: set[str] = set()
    for part in (root / "Images", root / "Annotations"):
        if not part.is_dir():
            raise ValueError(f"no folder {part}; expected the layout {LAYOUT}")
        # The official archive was packed on a Mac.
        albums |= {folder.name for folder in part.iterdir() if folder.is_dir() and not folder.name.startswith(".")}
    if not albums:
        raise ValueError(f"no objects under {root / 'Images'}; expected the layout {LAYOUT}")
    return TrackList([root / "Images" / album for album in sorted(albums)], read_album)


def read_album(folder: Path) -> Track:
    """The track of one object, given its folder of pictures. Raises TrackError naming the file and its fault."""
    annotations = folder.parent.parent / "Annotations" / folder.name
    if not annotations.is_dir():
        raise TrackError(f"{annotations}: the folder of masks is missing")
    count = sum(1 for path in annotations.glob("*.png") if not path.name.startswith("."))
    if count == 0:
        raise TrackError(f"{annotations}: no masks")
    images = numbered_images(folder, [f"{number:02d}.jpg" for number in range(count)], annotations)
    masks = numbered_images(annotations, [f"{number:02d}.png" for number in range(count)], annotations)
    frames = tuple(_frame(image, mask) for image, mask in zip(images, masks, strict=True))
    return Track(id=folder.name, source="perseg", video=folder.name, category=folder.name, frames=frames)


def _frame(image_file: Path, mask_file: Path) -> TrackFrame:
    try:
        size = image_size(image_file)
        _, mask = load_image(mask_file, size)
    except ImageFileError as error:
        raise TrackError(str(error)) from error
    orientation = _orientation(image_file)
    if orientation != _UPRIGHT:
        raise TrackError(f"{image_file}: stored turned (EXIF orientation {orientation}); save it upright, without EXIF")
    if mask.format != "PNG" or mask.mode not in _MASK_MODES:
        raise TrackError(f"{mask_file}: expected a PNG in 8-bit colour, palette or grey, got {mask.format} {mask.mode}")
    _verify(mask_file)
    corners = _bounding_box(mask)
    return TrackFrame(image_file, corners, "absent" if corners is None else None, size)


def _verify(mask_file: Path) -> None:
    """Checksums: decoding alone lets some damaged pixels pass."""
    try:
        with Image.open(mask_file) as mask:
            mask.verify()
    except (OSError, SyntaxError) as error:
        raise TrackError(f"{mask_file}: the mask is damaged: {error}") from error


def _orientation(path: Path) -> int:
    try:
        with Image.open(path) as image:
            return int(image.getexif().get(_ORIENTATION_TAG, _UPRIGHT))
    except (OSError, SyntaxError, ValueError, struct.error) as error:
        raise TrackError(f"{path}: its EXIF cannot be read: {error}") from error


def _bounding_box(mask: Image.Image) -> Corners | None:
    """The half-open bounding box of what is not black, None where all is. Transparency says nothing."""
    grey = np.asarray(mask.convert("RGB").convert("L"))
    columns, rows = np.flatnonzero(grey.any(axis=0)), np.flatnonzero(grey.any(axis=1))
    if not len(columns):
        return None
    return (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
