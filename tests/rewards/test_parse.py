"""The strict parser: what has a box, and under which fault everything else is refused."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from data.box import Frame
from rewards.parse import AnswerError, AnswerFault, parse_answer

FRAME = Frame.thousandths()
BOX = "[10, 20, 110, 120]"
ANSWER = f"<answer>{BOX}</answer>"


@pytest.mark.parametrize(
    "text",
    [
        ANSWER,
        f"  \n{ANSWER}\n",
        f"<think>left of the cup</think>{ANSWER}",
        f"<think>\nseveral\nlines\n</think>\n\n{ANSWER}",
        f"<think></think>{ANSWER}",
        "<answer>\n[10,20,110,120]\n</answer>",
        "<answer>[ +10 ,\t20.0 ,110.000, 120 ]</answer>",
    ],
)
def test_well_formed_answers_have_their_box(text: str) -> None:
    assert parse_answer(text, FRAME).corners == (10, 20, 110, 120)


def test_negative_and_decimal_corners_are_read_as_they_stand() -> None:
    assert parse_answer("<answer>[-3, -4.25, 7.5, 2000]</answer>", FRAME).corners == (-3, -4.25, 7.5, 2000)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", AnswerFault.NO_ANSWER),
        (BOX, AnswerFault.NO_ANSWER),
        (f"<ANSWER>{BOX}</ANSWER>", AnswerFault.NO_ANSWER),
        (f"<answer >{BOX}</answer >", AnswerFault.NO_ANSWER),
        (f"{ANSWER}{ANSWER}", AnswerFault.SEVERAL_ANSWERS),
        (f"<answer>[1, 1, 2, 2]</answer> no: {ANSWER}", AnswerFault.SEVERAL_ANSWERS),
        (f"<think>{ANSWER}</think>{ANSWER}", AnswerFault.SEVERAL_ANSWERS),
        (f"<answer>{ANSWER}</answer>", AnswerFault.SEVERAL_ANSWERS),
        (f"<think>a</think><answer>{BOX}", AnswerFault.BROKEN_TAGS),
        (f"{BOX}</answer>", AnswerFault.BROKEN_TAGS),
        (f"</answer>{BOX}<answer>", AnswerFault.BROKEN_TAGS),
        (f"{ANSWER}<think>late</think>", AnswerFault.BROKEN_TAGS),
        (f"<think>{ANSWER}</think>", AnswerFault.BROKEN_TAGS),
        (f"<think>a{ANSWER}", AnswerFault.BROKEN_TAGS),
        (f"a</think>{ANSWER}", AnswerFault.BROKEN_TAGS),
        (f"<think><think>a</think></think>{ANSWER}", AnswerFault.BROKEN_TAGS),
        (f"Sure! {ANSWER}", AnswerFault.TEXT_OUTSIDE),
        (f"{ANSWER} I hope this helps", AnswerFault.TEXT_OUTSIDE),
        (f"<think>a</think> so {ANSWER}", AnswerFault.TEXT_OUTSIDE),
        (f"{ANSWER}<|im_end|>", AnswerFault.TEXT_OUTSIDE),
        (f"```{ANSWER}```", AnswerFault.TEXT_OUTSIDE),
        ("<answer></answer>", AnswerFault.NOT_A_BOX),
        ("<answer>|</answer>", AnswerFault.NOT_A_BOX),
        (f"<answer>the box {BOX}</answer>", AnswerFault.NOT_A_BOX),
        (f"<answer>{BOX}{BOX}</answer>", AnswerFault.NOT_A_BOX),
        (f'<answer>{{"bbox_2d": {BOX}}}</answer>', AnswerFault.NOT_A_BOX),
        ("<answer>[10, 20, 110]</answer>", AnswerFault.NOT_A_BOX),
        ("<answer>[10, 20, 110, 120, 130]</answer>", AnswerFault.NOT_A_BOX),
        ("<answer>[10, 20, 110, 120</answer>", AnswerFault.NOT_A_BOX),
        ("<answer>(10, 20, 110, 120)</answer>", AnswerFault.NOT_A_BOX),
        ("<answer>[10, 20, 1e3, 120]</answer>", AnswerFault.NOT_A_BOX),
        ("<answer>[nan, 20, 110, 120]</answer>", AnswerFault.NOT_A_BOX),
        ("<answer>[10, 20, inf, 120]</answer>", AnswerFault.NOT_A_BOX),
        ("<answer>[.5, 20, 110, 120]</answer>", AnswerFault.NOT_A_BOX),
        ("<answer>[1_0, 20, 110, 120]</answer>", AnswerFault.NOT_A_BOX),
        ("<answer>[١٠, ٢٠, ١١٠, ١٢٠]</answer>", AnswerFault.NOT_A_BOX),
        ("<answer>[１０, ２０, １１０, １２０]</answer>", AnswerFault.NOT_A_BOX),
        (f"<answer>[10, 20, {'9' * 400}, 120]</answer>", AnswerFault.NOT_FINITE),
        ("<answer>[110, 20, 10, 120]</answer>", AnswerFault.EMPTY_BOX),
        ("<answer>[10, 120, 110, 20]</answer>", AnswerFault.EMPTY_BOX),
        ("<answer>[10, 20, 10, 120]</answer>", AnswerFault.EMPTY_BOX),
        ("<answer>[0, 0, 0, 0]</answer>", AnswerFault.EMPTY_BOX),
    ],
)
def test_everything_else_is_refused_under_its_fault(text: str, fault: AnswerFault) -> None:
    with pytest.raises(AnswerError) as refused:
        parse_answer(text, FRAME)
    assert refused.value.fault is fault


def test_an_answer_cut_at_any_character_is_never_repaired() -> None:
    whole = f"<think>left</think>{ANSWER}"
    for end in range(len(whole)):
        with pytest.raises(AnswerError):
            parse_answer(whole[:end], FRAME)


corners = st.tuples(*[st.decimals(-10_000, 10_000, places=3, allow_nan=False)] * 4)
spaces = st.text(" \t\n", max_size=4)


@given(corners, spaces, spaces)
def test_printing_and_reading_agree(values: tuple, inner: str, outer: str) -> None:
    """Any four decimals come back as the same floats, or are refused exactly when they make no box."""
    x1, y1, x2, y2 = (float(value) for value in values)
    numbers = f"{inner},{inner}".join(format(value, "f") for value in values)
    text = f"{outer}<answer>{inner}[{inner}{numbers}{inner}]{inner}</answer>{outer}"
    if x2 > x1 and y2 > y1:
        assert parse_answer(text, FRAME).corners == (x1, y1, x2, y2)
    else:
        with pytest.raises(AnswerError) as refused:
            parse_answer(text, FRAME)
        assert refused.value.fault is AnswerFault.EMPTY_BOX


pieces = st.sampled_from(
    ["<think>", "</think>", "<answer>", "</answer>", "[1, 2, 3, 4]", "[", "1", ", ", "]", " ", "\n", "x", "é"]
)


@given(st.one_of(st.text(), st.lists(pieces, max_size=12).map("".join)))
@example("<answer>[1, 2, 3, 4]</answer>" * 2)
def test_any_text_has_a_valid_box_or_a_fault(text: str) -> None:
    try:
        box = parse_answer(text, FRAME)
    except AnswerError as error:
        assert error.fault in AnswerFault
    else:
        assert text.count("<answer>") == text.count("</answer>") == 1
        assert text.strip().endswith("</answer>") and text.strip().startswith(("<answer>", "<think>"))
        assert all(math.isfinite(value) for value in box.corners) and box.area > 0
