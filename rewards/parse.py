"""Reads a completion's tags and its box, strictly: what is not exactly the asked form has no box.

    <think> The mug's handle points left … </think><answer>[12, 40, 118, 96]</answer>

The grammar of the whole text, after strip:

    text     [ think ] answer                any whitespace between, nothing else outside of the tags
    think    <think> anything </think>       optional here, because two recipes share the parser: rewards.format asks for it
    answer   <answer> box </answer>          any whitespace around the box
    box      [number, number, number, number], any whitespace between; x2 > x1, y2 > y1; every number finite as a float
    number   optional sign, ASCII digits, optionally a point and more digits: 12, -3, +4.50; no exponent, no `.5`, no `nan`

Each tag occurs at most once in the whole text, inside the thought too. Nothing is searched for, repaired or guessed: the
first of several answers, an unclosed answer, a box with words around it are each refused under a reason of their own
(`AnswerFault`), so that logs can count what a policy gets wrong.
"""

from __future__ import annotations

import math
import re
from enum import StrEnum

from data.box import Box, Frame

_NUMBER = r"[+-]?[0-9]+(?:\.[0-9]+)?"
_TEXT = re.compile(r"(?:<think>(.*?)</think>\s*)?<answer>(.*?)</answer>", re.DOTALL)
_BOX = re.compile(rf"\[\s*({_NUMBER})\s*,\s*({_NUMBER})\s*,\s*({_NUMBER})\s*,\s*({_NUMBER})\s*\]")


class AnswerFault(StrEnum):
    """Why a text holds no box. The values are metric names: stable, and short."""

    NO_ANSWER = "no_answer"
    SEVERAL_ANSWERS = "several_answers"
    BROKEN_TAGS = "broken_tags"
    TEXT_OUTSIDE = "text_outside"
    NOT_A_BOX = "not_a_box"
    NOT_FINITE = "not_finite"
    EMPTY_BOX = "empty_box"


class AnswerError(ValueError):
    """A completion without a valid answer; `fault` says which rule it broke."""

    def __init__(self, fault: AnswerFault, detail: str) -> None:
        super().__init__(f"{fault}: {detail}")
        self.fault = fault


def split(text: str) -> tuple[str | None, str]:
    """The contents of the thought (None without one) and of the answer. Raises AnswerError."""
    whole = text.strip()
    opened, closed = whole.count("<answer>"), whole.count("</answer>")
    if opened == closed == 0:
        raise AnswerError(AnswerFault.NO_ANSWER, "the text has no <answer>")
    if opened > 1 or closed > 1:
        raise AnswerError(AnswerFault.SEVERAL_ANSWERS, f"{opened} <answer> and {closed} </answer>, expected one of each")
    order = [whole.find(tag) for tag in ("<think>", "</think>", "<answer>", "</answer>")]
    thoughts = (whole.count("<think>"), whole.count("</think>"))
    if opened != closed or thoughts not in ((0, 0), (1, 1)) or order != sorted(order):
        raise AnswerError(
            AnswerFault.BROKEN_TAGS, "tags do not pair up, or not in the order <think> </think> <answer> </answer>"
        )
    # Every tag occurs once and in order, so the lazy quantifiers have one place to stop: no backtracking.
    matched = _TEXT.fullmatch(whole)
    if matched is None:
        raise AnswerError(AnswerFault.TEXT_OUTSIDE, "something stands outside of the tags")
    return matched[1], matched[2]


def parse_answer(text: str, frame: Frame) -> Box:
    """The box of the text's only answer, read in `frame`; it may leave the frame, clip it before scoring.

    >>> parse_answer("<answer>[12, 40, 118.5, 96]</answer>", Frame.thousandths()).corners
    (12.0, 40.0, 118.5, 96.0)

    Raises AnswerError with its fault.
    """
    return parse_box(split(text)[1], frame)


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
