"""Reads a completion's tags and its box, strictly: what is not exactly the asked form has no box.

    <think> The mug's handle points left … </think><answer>[12, 40, 118, 96]</answer>

The grammar, whole:

    number   optional sign, ASCII digits, optionally a point and more digits: 12, -3, +4.50. No exponent, no `.5`, no `nan`
    box      [number, number, number, number], any whitespace between; x2 > x1 and y2 > y1; every number finite as a float
    answer   `<answer>` box `</answer>`, any whitespace around the box; one `<answer>` and one `</answer>` in the whole text

Nothing is searched for, repaired or guessed. The first of several answers, an unclosed answer, a box with words around it:
each is refused under its own reason (`AnswerFault`), so that logs can count what a policy gets wrong.
"""

from __future__ import annotations

import math
import re
from enum import StrEnum

from data.box import Box, Frame

_NUMBER = r"[+-]?[0-9]+(?:\.[0-9]+)?"
_BOX = re.compile(rf"\[\s*({_NUMBER})\s*,\s*({_NUMBER})\s*,\s*({_NUMBER})\s*,\s*({_NUMBER})\s*\]")


class AnswerFault(StrEnum):
    """Why a text holds no box. The values are metric names: stable, and short."""

    NO_ANSWER = "no_answer"
    SEVERAL_ANSWERS = "several_answers"
    BROKEN_TAGS = "broken_tags"
    NOT_A_BOX = "not_a_box"
    NOT_FINITE = "not_finite"
    EMPTY_BOX = "empty_box"


class AnswerError(ValueError):
    """A completion without a valid answer; `fault` says which rule it broke."""

    def __init__(self, fault: AnswerFault, detail: str) -> None:
        super().__init__(f"{fault}: {detail}")
        self.fault = fault


def element(text: str, tag: str) -> tuple[int, int, str] | None:
    """The text's one `<tag>…</tag>` as (start, end, content); None unless each of the two tags occurs once, in order."""
    opening, closing = f"<{tag}>", f"</{tag}>"
    if text.count(opening) != 1 or text.count(closing) != 1:
        return None
    start, stop = text.index(opening), text.index(closing)
    if stop < start:
        return None
    return start, stop + len(closing), text[start + len(opening) : stop]


def parse_answer(text: str, frame: Frame) -> Box:
    """The box of the text's only answer, read in `frame`; it may leave the frame, clip it before scoring.

    >>> parse_answer("<answer>[12, 40, 118.5, 96]</answer>", Frame.thousandths()).corners
    (12.0, 40.0, 118.5, 96.0)

    Raises AnswerError with its fault. What stands outside the answer is not this function's business: see rewards.format.
    """
    found = element(text, "answer")
    if found is None:
        opened, closed = text.count("<answer>"), text.count("</answer>")
        if opened == 0 and closed == 0:
            raise AnswerError(AnswerFault.NO_ANSWER, "the text has no <answer>")
        if opened > 1 or closed > 1:
            raise AnswerError(AnswerFault.SEVERAL_ANSWERS, f"{opened} <answer> and {closed} </answer>, expected one of each")
        raise AnswerError(AnswerFault.BROKEN_TAGS, "<answer> and </answer> do not pair up")
    return parse_box(found[2], frame)


def parse_box(content: str, frame: Frame) -> Box:
    """The box that the content of an answer is, after strip. Raises AnswerError."""
    matched = _BOX.fullmatch(content.strip())
    if matched is None:
        raise AnswerError(AnswerFault.NOT_A_BOX, f"expected [x1, y1, x2, y2], got {content.strip()[:60]!r}")
    x1, y1, x2, y2 = (float(number) for number in matched.groups())
    if not all(math.isfinite(value) for value in (x1, y1, x2, y2)):
        raise AnswerError(AnswerFault.NOT_FINITE, "a number is too large for a float")
    if x2 <= x1 or y2 <= y1:
        raise AnswerError(AnswerFault.EMPTY_BOX, f"expected x2 > x1 and y2 > y1, got {[x1, y1, x2, y2]}")
    return Box(x1, y1, x2, y2, frame)
