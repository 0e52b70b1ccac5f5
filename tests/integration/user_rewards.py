"""Rewards that a user might bring: one that works on any text, and some that do not work."""

from __future__ import annotations

import zlib

from data.sample import Sample
from rewards.score import Completion, Score


def letters(sample: Sample, completion: Completion) -> Score:
    """Something that differs between the answers of a random model, which never writes a box."""
    value = sum(map(ord, completion.text)) % 97 / 97
    return Score(value, {"iou": value, "format": 1.0})


def sometimes_broken(sample: Sample, completion: Completion) -> Score:
    """Fails on about a third of all answers; not on a text as such, because a random model repeats itself."""
    if zlib.crc32(f"{sample.id} {completion.text}".encode()) % 3 == 0:
        raise ZeroDivisionError("the judge divides by zero")
    return letters(sample, completion)


def always_broken(sample: Sample, completion: Completion) -> Score:
    raise KeyError("no_such_field")
