"""Reads annotation files that are one JSON value, strictly: a missing key, a wrong type or a repeated key is an error.

`where` is how an error names a record, for instance "train.json: annotation 17".
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from data.track import TrackError

Record = Mapping[str, Any]


def read_json(path: Path) -> Any:
    """The file's value. Raises TrackError, naming the file and the fault, when it is not whole JSON or repeats a key."""
    try:
        return json.loads(path.read_bytes(), object_pairs_hook=_unique_keys)
    except OSError as error:
        raise TrackError(f"{path} cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise TrackError(f"{path}: broken JSON: {error}") from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} appears twice in one object")
    return record


def _member(value: object, key: str, where: str) -> Any:
    if not isinstance(value, dict):
        raise TrackError(f"{where} must be an object, got {_shown(value)}")
    if key not in value:
        raise TrackError(f"{where} lacks the key {key!r}")
    return value[key]


def integer(record: object, key: str, where: str, least: int | None = None) -> int:
    """An integer; `true` is none."""
    value = _member(record, key, where)
    if type(value) is not int or (least is not None and value < least):
        wanted = "an integer" if least is None else f"an integer of at least {least}"
        raise TrackError(f"{where}: {key!r} must be {wanted}, got {_shown(value)}")
    return value


def text(record: object, key: str, where: str) -> str:
    """A string that is not empty."""
    value = _member(record, key, where)
    if not isinstance(value, str) or not value:
        raise TrackError(f"{where}: {key!r} must be a text, got {_shown(value)}")
    return value


def array(record: object, key: str, where: str) -> list[Any]:
    value = _member(record, key, where)
    if not isinstance(value, list):
        raise TrackError(f"{where}: {key!r} must be an array, got {_shown(value)}")
    return value


def mapping(record: object, key: str, where: str) -> dict[str, Any]:
    value = _member(record, key, where)
    if not isinstance(value, dict):
        raise TrackError(f"{where}: {key!r} must be an object, got {_shown(value)}")
    return value


def four_numbers(values: object, where: str) -> tuple[float, float, float, float]:
    """Four finite numbers, as the coordinates of a box."""
    if not isinstance(values, list | tuple) or len(values) != 4:
        raise TrackError(f"{where}: a box must be four numbers, got {_shown(values)}")
    if not all(type(value) in (int, float) for value in values):
        raise TrackError(f"{where}: a box must be four numbers, got {_shown(values)}")
    try:
        a, b, c, d = (float(value) for value in values)
    except OverflowError as error:
        raise TrackError(f"{where}: a box must be finite, got {_shown(values)}") from error
    if not all(math.isfinite(value) for value in (a, b, c, d)):
        raise TrackError(f"{where}: a box must be finite, got {_shown(values)}")
    return (a, b, c, d)


def by_id(records: Iterable[Any], name: str, path: Path) -> dict[int, Any]:
    """The records by their "id". Raises TrackError when two share one."""
    found: dict[int, Any] = {}
    for place, record in enumerate(records):
        number = integer(record, "id", f"{path}: {name} number {place}")
        if number in found:
            raise TrackError(f"{path}: the {name} id {number} comes twice")
        found[number] = record
    return found


def is_file(path: Path) -> bool:
    """False also for a name that no file can have."""
    try:
        return path.is_file()
    except OSError:
        return False


def _shown(value: object) -> str:
    """The value, or the start of it."""
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}…"
