"""IoU, format and the two papers' combinations, against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.box import Box, Frame
from data.sample import EncodedImage, ImagePart, Sample
from rewards import focus, locus
from rewards.format import answer_only_format, think_answer_format
from rewards.iou import box_iou
from rewards.score import Completion

THOUSANDTHS = Frame.thousandths()
ORIGINAL = Frame.original(640, 480)


def answer(box: list[float], frame: Frame = THOUSANDTHS, before: str = "") -> Completion:
    return Completion(f"{before}<answer>{box}</answer>", frame)


def test_the_target_itself_scores_one_in_every_frame(sample: Sample) -> None:
    assert box_iou(sample, answer([100, 100, 200, 200])) == pytest.approx(1.0)
    assert box_iou(sample, answer([64, 48, 128, 96], ORIGINAL)) == pytest.approx(1.0)
    # 640×480 is 644×476 to Qwen2.5-VL.
    assert box_iou(sample, answer([64.4, 47.6, 128.8, 95.2], Frame.resized(644, 476))) == pytest.approx(1.0)


def test_half_overlap_scores_a_third(sample: Sample) -> None:
    """Shifted by half its width: intersection 50×100, union 150×100."""
    assert box_iou(sample, answer([150, 100, 250, 200])) == pytest.approx(1 / 3)


def test_an_answer_in_the_wrong_frame_is_not_forgiven(sample: Sample) -> None:
    assert box_iou(sample, answer([64, 48, 128, 96], THOUSANDTHS)) < 0.1


def test_what_leaves_the_image_is_clipped_first() -> None:
    """Target at the right bottom corner; the answer hangs out of the picture and covers exactly the target inside it."""
    sample = Sample(
        "s", "t", (EncodedImage(100, 100, path="x"),), (ImagePart(0),), Box(80, 80, 100, 100, Frame.original(100, 100))
    )
    assert box_iou(sample, answer([800, 800, 1500, 4000])) == pytest.approx(1.0)
    assert box_iou(sample, answer([1000, 1000, 1100, 1100])) == 0.0
    assert box_iou(sample, answer([-50, -50, -10, -10])) == 0.0


def test_a_target_hanging_out_of_its_image_is_clipped_too(sample: Sample) -> None:
    hanging = replace(sample, target=Box(-64, 48, 64, 96, ORIGINAL))
    assert box_iou(hanging, answer([0, 100, 100, 200])) == pytest.approx(1.0)


def test_a_target_outside_its_image_is_an_error_not_a_zero(sample: Sample) -> None:
    outside = replace(sample, target=Box(700, 48, 710, 96, ORIGINAL))
    with pytest.raises(ValueError, match=r"scene-1.*outside"):
        box_iou(outside, answer([100, 100, 200, 200]))


@given(st.tuples(*[st.integers(-500, 1500)] * 4))
def test_iou_equals_counting_cells(box: tuple[int, int, int, int]) -> None:
    """Independent: count unit cells of the thousandths grid along each axis."""
    sample = Sample("s", "t", (EncodedImage(640, 480, path="x"),), (ImagePart(0),), Box(64, 48, 128, 96, ORIGINAL))
    x1, y1, x2, y2 = box
    xs, ys = set(range(max(x1, 0), min(x2, 1000))), set(range(max(y1, 0), min(y2, 1000)))
    target = set(range(100, 200))
    both = len(xs & target) * len(ys & target)
    expected = both / (len(xs) * len(ys) + 100 * 100 - both)
    assert box_iou(sample, answer(list(box))) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "thinking", "bare"),
    [
        ("<think>a</think><answer>[1, 2, 3, 4]</answer>", 1.0, 0.0),
        ("<think>a\nb</think>\n<answer>[1, 2, 3, 4]</answer>\n", 1.0, 0.0),
        ("<think>a</think><answer>over there</answer>", 1.0, 0.0),
        ("<answer>[1, 2, 3, 4]</answer>", 0.0, 1.0),
        ("<answer>[9, 2, 3, 4]</answer>\n", 0.0, 1.0),
        ("<answer>[1, 2, 3]</answer>", 0.0, 0.0),
        ("<think>a</think>so <answer>[1, 2, 3, 4]</answer>", 0.0, 0.0),
        ("<answer>[1, 2, 3, 4]</answer>!", 0.0, 0.0),
        ("<answer>[1, 2, 3, 4]</answer>" * 2, 0.0, 0.0),
        ("<think>a</think><answer>[1, 2, 3, 4]", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_formats(text: str, thinking: float, bare: float) -> None:
    assert (think_answer_format(text), answer_only_format(text)) == (thinking, bare)


def test_locus_weighs_iou_and_format(sample: Sample) -> None:
    """IoU 1/3: 0.9/3 + 0.1 = 0.4 with a thought, 0.3 without."""
    thoughtful = locus.reward(sample, answer([150, 100, 250, 200], before="<think>a</think>"))
    assert thoughtful.total == pytest.approx(0.4)
    assert thoughtful.parts == {"iou": pytest.approx(1 / 3), "format": 1.0}
    assert locus.reward(sample, answer([150, 100, 250, 200])).total == pytest.approx(0.3)
    assert locus.reward(sample, answer([250, 100, 150, 200], before="<think>a</think>")).total == pytest.approx(0.1)
    assert locus.reward(sample, Completion("no idea", THOUSANDTHS)).total == 0.0


def test_locus_alpha_is_checked(sample: Sample) -> None:
    assert locus.reward(sample, answer([150, 100, 250, 200], before="<think>a</think>"), alpha=0.4).total == pytest.approx(
        0.6
    )
    with pytest.raises(ValueError, match="alpha"):
        locus.reward(sample, answer([150, 100, 250, 200]), alpha=1.5)


def test_focus_adds_half_for_the_form(sample: Sample) -> None:
    assert focus.reward(sample, answer([150, 100, 250, 200])).total == pytest.approx(1 / 3 + 0.5)
    assert focus.reward(sample, answer([250, 100, 150, 200])).total == pytest.approx(0.5)
    assert focus.reward(sample, answer([150, 100, 250, 200], before="It is here: ")).total == 0.0
