"""Format rewards: 1.0 if the whole completion has the form its prompt asked for, else 0.0.

    LOCUS   <think>…</think><answer>…</answer>            anything inside the tags
    FOCUS   <answer>[x1, y1, x2, y2]</answer>             four numbers, no thought

Whitespace may stand around and between the elements, nothing else may. Whether what is inside makes a box that exists is
the IoU's business, so that no fault is charged twice.
"""

from __future__ import annotations

from data.box import Frame
from rewards.parse import AnswerError, AnswerFault, parse_box, split


def think_answer_format(text: str) -> float:
    """1.0 for `<think>…</think><answer>…</answer>`; the thought may be empty."""
    try:
        thought, _ = split(text)
    except AnswerError:
        return 0.0
    return 0.0 if thought is None else 1.0


def answer_only_format(text: str) -> float:
    """1.0 for `<answer>[x1, y1, x2, y2]</answer>`; the numbers need not make a valid box."""
    try:
        thought, answer = split(text)
        parse_box(answer, Frame.thousandths())
    except AnswerError as error:
        if error.fault not in (AnswerFault.EMPTY_BOX, AnswerFault.NOT_FINITE):
            return 0.0
    return 1.0 if thought is None else 0.0
