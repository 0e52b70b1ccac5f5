"""Format rewards: 1.0 if the whole completion has the form its prompt asked for, else 0.0.

    LOCUS   <think>…</think><answer>…</answer>            anything inside the tags
    FOCUS   <answer>[x1, y1, x2, y2]</answer>             four numbers

Whitespace may stand around and between the elements, nothing else may: no word before, no second answer, no tag inside
another. Whether the four numbers make a box that exists is the IoU's business, so that no fault is charged twice.
"""

from __future__ import annotations

from data.box import Frame
from rewards.parse import AnswerError, AnswerFault, element, parse_box


def think_answer_format(text: str, *, think_in_prompt: bool = False) -> float:
    """1.0 for `<think>…</think><answer>…</answer>`, each tag exactly once and nothing outside; the thought may be empty.

    `think_in_prompt`: the chat template has opened `<think>` itself (Qwen3-VL-Thinking does), so a completion starts inside.
    """
    whole = ("<think>" + text if think_in_prompt else text).strip()
    think, answer = element(whole, "think"), element(whole, "answer")
    if think is None or answer is None:
        return 0.0
    (think_start, think_end, _), (answer_start, answer_end, _) = think, answer
    ordered = think_start == 0 and think_end <= answer_start and answer_end == len(whole)
    return 1.0 if ordered and not whole[think_end:answer_start].strip() else 0.0


def answer_only_format(text: str) -> float:
    """1.0 for `<answer>[x1, y1, x2, y2]</answer>` and nothing outside; the numbers need not make a valid box."""
    whole = text.strip()
    answer = element(whole, "answer")
    if answer is None or answer[0] != 0 or answer[1] != len(whole):
        return 0.0
    try:
        parse_box(answer[2], Frame.thousandths())
    except AnswerError as error:
        return 0.0 if error.fault is AnswerFault.NOT_A_BOX else 1.0
    return 1.0
