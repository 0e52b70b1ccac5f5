"""The small text files that tracking datasets keep beside a video's images: read line by line, every fault with its place.

Blank lines at the end of a file are ignored; anywhere else they are a fault, because every later line would then speak of
another image.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from data.track import Corners, TrackError

_INTEGER = re.compile(r"[+-]?[0-9]+")
_DECIMAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
# No image is that large, and sums of numbers below it stay exact.
_LARGEST = 1_000_000
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True, slots=True)
class Lines:
    """A text file: its lines (line n is `texts[n - 1]`), and whether the last one has a line end."""

    path: Path
    texts: tuple[str, ...]
    terminated: bool

    def fault(self, line: int, problem: str) -> TrackError:
        return TrackError(f"{self.path}:{line}: {problem}")


def read_lines(path: Path) -> Lines:
    """The lines of a UTF-8 file without those that are blank at its end. Raises TrackError if it is missing or empty."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise TrackError(f"{path}: the file is missing") from error
    except UnicodeDecodeError as error:
        raise TrackError(f"{path}: not UTF-8 text at byte {error.start}") from error
    except OSError as error:
        raise TrackError(f"{path}: cannot be read: {error.strerror}") from error
    if not text.strip():
        raise TrackError(f"{path}: the file is empty")
    return Lines(path, tuple(text.rstrip().split("\n")), terminated=text.endswith("\n"))


def read_names(path: Path, layout: str) -> tuple[str, ...]:
    """The video names of a list file, one a line. Raises ValueError, naming the expected layout, if there are none."""
    if not path.is_file():
        raise ValueError(f"no list of videos at {path}; expected the layout {layout}")
    lines = read_lines(path)
    first_line: dict[str, int] = {}
    for line, text in enumerate(lines.texts, 1):
        name = text.strip()
        if not name or "/" in name or name in (".", ".."):
            raise lines.fault(line, f"expected the name of a video, got {text!r}")
        if name in first_line:
            raise lines.fault(line, f"{name} is listed already, on line {first_line[name]}")
        first_line[name] = line
    return tuple(first_line)


def integer(text: str) -> float:
    """A pixel coordinate written as an integer. Raises ValueError saying what is wrong."""
    if not _INTEGER.fullmatch(text):
        raise ValueError(f"expected an integer, got {text!r}")
    return _bounded(float(text), text)


def decimal(text: str) -> float:
    """A pixel coordinate written as a decimal number. Raises ValueError saying what is wrong."""
    if not _DECIMAL.fullmatch(text):
        raise ValueError(f"expected a finite number, got {text!r}")
    return _bounded(float(text), text)


def _bounded(value: float, text: str) -> float:
    if not -_LARGEST <= value <= _LARGEST:
        raise ValueError(f"{text[:40]} is no pixel coordinate (beyond ±{_LARGEST:,})")
    return value


def one_based_boxes(lines: Lines, number: Callable[[str], float]) -> list[Corners]:
    """One `x,y,width,height` a line, the image's first pixel being (1, 1), as corners that count from 0."""
    boxes: list[Corners] = []
    for line, text in enumerate(lines.texts, 1):
        values = [value.strip() for value in text.split(",")]
        if not text.strip():
            raise lines.fault(line, "a blank line in place of a box")
        if len(values) != 4:
            raise lines.fault(line, f"expected x,y,width,height, got {len(values)} values: {text[:80]!r}")
        try:
            x, y, width, height = (number(value) for value in values)
        except ValueError as error:
            raise lines.fault(line, str(error)) from error
        boxes.append((x - 1, y - 1, x - 1 + width, y - 1 + height))
    return boxes


def has_area(corners: Corners) -> bool:
    x1, y1, x2, y2 = corners
    return x2 > x1 and y2 > y1


def numbers_of_one_line(path: Path, frames: int, highest: int = 1) -> tuple[list[int], bool]:
    """`frames` comma-separated numbers 0 to `highest` on one line, and whether the line has an end."""
    lines = read_lines(path)
    if len(lines.texts) != 1:
        raise lines.fault(2, f"expected one comma-separated line for all frames, got {len(lines.texts)} lines")
    texts = lines.texts[0].split(",")
    numbers = [_level(lines, 1, text, highest) for text in texts]
    if len(numbers) != frames:
        raise lines.fault(1, f"{len(numbers)} values for {frames} frames")
    return numbers, lines.terminated


def numbers_of_lines(path: Path, frames: int, highest: int = 1) -> list[int]:
    """`frames` numbers 0 to `highest`, one a line."""
    lines = read_lines(path)
    numbers = [_level(lines, line, text, highest) for line, text in enumerate(lines.texts, 1)]
    if len(numbers) != frames:
        raise lines.fault(len(numbers), f"{len(numbers)} lines for {frames} frames")
    return numbers


def _level(lines: Lines, line: int, text: str, highest: int) -> int:
    if not re.fullmatch(r"[0-9]", text.strip()) or int(text) > highest:
        raise lines.fault(line, f"expected a number from 0 to {highest}, got {text[:40]!r}")
    return int(text)


def numbered_images(folder: Path, names: list[str], spoken_of_by: Path) -> list[Path]:
    """The images `names` of `folder`, checked: all are there, and no other image is. They are not opened.

    Raises TrackError. `spoken_of_by` is the file that has one entry for every image.
    """
    try:
        with os.scandir(folder) as entries:
            found = {entry.name for entry in entries if _is_image(entry)}
    except OSError as error:
        raise TrackError(f"{folder}: the folder of images cannot be read: {error.strerror}") from error
    for name in names:
        if name not in found:
            raise TrackError(f"{folder / name}: the image is missing; {spoken_of_by} speaks of {len(names)}")
    if strangers := sorted(found.difference(names)):
        spoken_of = f"{len(names)} images, {names[0]} to {names[-1]}"
        raise TrackError(f"{spoken_of_by}: speaks of {spoken_of}; {folder} has {strangers[0]} too: cut off?")
    return [folder / name for name in names]


def _is_image(entry: os.DirEntry[str]) -> bool:
    """Hidden files, as some systems leave beside every file, are no images."""
    return not entry.name.startswith(".") and entry.name.lower().endswith(_IMAGE_SUFFIXES) and entry.is_file()


def refuse_cut_decimals(lines: Lines) -> None:
    """Refuse a file that was cut inside its last number: without a line end there, and all others share more decimals.

    Where decimals vary anyway, "4.5" may be all of the last number as well as the start of 4.55: nobody can tell. The "-1"
    of a frame without a target counts as no number.
    """
    if lines.terminated:
        return
    *others, last = (value.strip() for text in lines.texts for value in text.split(","))
    decimals = {_decimals(value) for value in others if value != "-1"}
    if len(decimals) == 1 and others[-1] != "-1" and _decimals(last) < decimals.pop():
        raise lines.fault(len(lines.texts), f"cut off inside its last number: {lines.texts[-1]!r}")


def _decimals(number: str) -> int:
    return len(number.partition(".")[2])
