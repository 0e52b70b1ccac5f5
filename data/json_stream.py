"""Reads a large JSON object once, front to back, one array element at a time, in memory that does not grow with the file.

    {"images": [{…}, {…}], "annotations": [{…}, …], "info": {…}}
        →  ("images", {…}), ("images", {…}), ("annotations", {…}), …

COCO's annotation files are hundreds of megabytes of one object with a few long arrays. The standard library's C scanner
decodes every element out of a sliding window of text: several times faster than an event parser, and it reads the NaN
and Infinity that tools do write, so that a reader can count them instead of failing.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, Any

_CHUNK = 1 << 20
# No element of an annotation file is near this; past it, the file is broken and not merely cut by the window.
_LARGEST_ELEMENT = 1 << 26
_BLANK = " \t\n\r"


def stream_arrays(path: Path, keys: Collection[str]) -> Iterator[tuple[str, Any]]:
    """(key, element) for every element of the top-level arrays named `keys`, in the order of the file.

    Raises ValueError, naming the file and the place, when the file is not a JSON object or one of `keys` is missing,
    repeated, or not an array.
    """
    with path.open(encoding="utf-8") as file:
        window = _Window(file, path)
        seen: set[str] = set()
        window.expect("{")
        while (key := _next_key(window, first=not seen)) is not None:
            if key in seen:
                raise window.error(f"the key {key!r} appears twice")
            seen.add(key)
            if window.peek() == "[":
                for element in _elements(window):
                    if key in keys:
                        yield key, element
            elif key in keys:
                raise window.error(f"{key!r} must be an array")
            else:
                window.value()
        if window.peek() != "":
            raise window.error("there is text after the end of the JSON object")
        if missing := sorted(set(keys) - seen):
            raise ValueError(f"{path}: the key {missing[0]!r} is missing; is this an annotation file?")


def _next_key(window: _Window, first: bool) -> str | None:
    """The next key of the object, its colon read; None at the closing brace, which is read."""
    if window.peek() == "}":
        window.expect("}")
        return None
    if not first:
        window.expect(",")
    key = window.value()
    if not isinstance(key, str):
        raise window.error("a key must be a string")
    window.expect(":")
    return key


def _elements(window: _Window) -> Iterator[Any]:
    window.expect("[")
    if window.peek() == "]":
        window.expect("]")
        return
    while True:
        yield window.value()
        if window.peek() == "]":
            window.expect("]")
            return
        window.expect(",")


class _Window:
    """The part of the text in memory, and the place in it."""

    def __init__(self, file: IO[str], path: Path) -> None:
        self.file = file
        self.path = path
        self.text = ""
        self.at = 0
        self.dropped = 0
        self.ended = False
        self.decoder = json.JSONDecoder()

    def error(self, message: str, at: int | None = None) -> ValueError:
        place = self.dropped + (self.at if at is None else at)
        return ValueError(f"{self.path}: broken JSON at character {place:,}: {message}")

    def peek(self) -> str:
        """The next character that is not blank; empty at the end of the file."""
        while True:
            while self.at < len(self.text):
                if self.text[self.at] not in _BLANK:
                    return self.text[self.at]
                self.at += 1
            if not self._grow(_CHUNK):
                return ""

    def expect(self, character: str) -> None:
        found = self.peek()
        if found != character:
            raise self.error(f"expected {character!r}, found {found!r}" if found else "the file ends too early")
        self.at += 1

    def value(self) -> Any:
        """The value that starts here, however much of the file it takes."""
        self.peek()
        grow = _CHUNK
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                # Broken, or cut by the window's edge: only more text can tell.
                if len(self.text) - self.at > _LARGEST_ELEMENT or not self._grow(grow):
                    raise self.error(error.msg, error.pos) from error
            except (ValueError, RecursionError) as error:
                raise self.error(str(error)) from error
            else:
                # A number near the edge may go on behind it: of "1.5e+3" the window may hold "1", "1." or "1.5e+".
                if end + 2 < len(self.text) or not self._grow(grow):
                    self.at = end
                    return value
            grow *= 2

    def _grow(self, characters: int) -> bool:
        """Drop what was read and append more; False at the end of the file."""
        if self.ended:
            return False
        try:
            more = self.file.read(characters)
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path}: not UTF-8 after character {self.dropped + len(self.text):,}: {error}") from error
        if not more:
            self.ended = True
            return False
        self.dropped += self.at
        self.text = self.text[self.at :] + more
        self.at = 0
        return True
