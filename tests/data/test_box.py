"""Box: conversion, clipping, IoU. Golden numbers are worked out by hand in the comments."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from data.box import Box, Frame, iou

VGA = Frame.original(640, 480)
VGA_RESIZED = Frame.resized(644, 476)

sides = st.integers(1, 5000)
frames = st.builds(Frame.original, sides, sides)


@st.composite
def boxes(draw: st.DrawFn, frame: Frame = VGA) -> Box:
    """Boxes of ordinary size, some of them partly or wholly outside the frame."""
    x, y = draw(st.floats(-100, 700)), draw(st.floats(-100, 600))
    return Box.from_xywh(x, y, draw(st.floats(0.5, 700)), draw(st.floats(0.5, 600)), frame)


def test_reading_a_resized_answer_as_original_pixels_costs_a_small_box_half_its_iou() -> None:
    """papers.md: 640×480 becomes 644×476; a 20-px box near the corner, not rescaled, drops to IoU 0.49.

    By hand: x 600…620 → 603.75…623.875, y 440…460 → 436.33…456.17; intersection 16.25 × 16.17 = 262.7;
    union 400 + 399.1 − 262.7 = 536.4; 262.7 / 536.4 = 0.49.
    """
    truth = Box(600, 440, 620, 460, VGA)
    answer = truth.to(VGA_RESIZED)
    read_wrongly = Box(*answer.corners, VGA)
    assert round(iou(read_wrongly, truth), 2) == 0.49
    assert iou(answer.to(VGA), truth) == pytest.approx(1.0)


def test_thousandths_are_of_width_and_of_height() -> None:
    box = Box(64, 48, 320, 480, VGA).to(Frame.thousandths())
    assert box.corners == pytest.approx((100, 100, 500, 1000))
    assert box.frame == Frame.thousandths()


def test_iou_by_hand() -> None:
    # 10×10 and 10×10 shifted by (5, 5): 25 / (100 + 100 − 25).
    assert iou(Box(0, 0, 10, 10, VGA), Box(5, 5, 15, 15, VGA)) == pytest.approx(25 / 175)
    assert iou(Box(0, 0, 10, 10, VGA), Box(10, 0, 20, 10, VGA)) == 0.0


def test_iou_across_frames_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"one frame.*Box\.to"):
        iou(Box(0, 0, 10, 10, VGA), Box(0, 0, 10, 10, VGA_RESIZED))


def test_two_images_of_one_size_but_different_kind_of_frame_do_not_mix() -> None:
    with pytest.raises(ValueError, match="one frame"):
        iou(Box(0, 0, 10, 10, Frame.original(644, 476)), Box(0, 0, 10, 10, VGA_RESIZED))


@pytest.mark.parametrize("corners", [(0, 0, 0, 5), (5, 0, 4, 5), (0, 0, math.nan, 5), (0, 0, math.inf, 5)])
def test_an_empty_reversed_or_non_finite_box_is_refused(corners: tuple[float, float, float, float]) -> None:
    with pytest.raises(ValueError, match="box"):
        Box(*corners, VGA)


@pytest.mark.parametrize("size", [(0, 5), (5, -1)])
def test_a_frame_without_extent_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="positive size"):
        Frame.original(*size)


def test_clip_by_hand() -> None:
    assert Box(-10, 470, 20, 500, VGA).clip() == Box(0, 470, 20, 480, VGA)
    assert Box(640, 0, 700, 10, VGA).clip() is None


@given(boxes(), frames)
def test_there_and_back_is_the_same_box(box: Box, frame: Frame) -> None:
    assert box.to(frame).to(VGA).corners == pytest.approx(box.corners, rel=1e-9, abs=1e-9)


@given(boxes(), boxes(), frames)
def test_iou_does_not_depend_on_the_frame_it_is_taken_in(a: Box, b: Box, frame: Frame) -> None:
    assert iou(a.to(frame), b.to(frame)) == pytest.approx(iou(a, b), abs=1e-9)


@given(boxes(), boxes())
def test_iou_is_symmetric_and_bounded(a: Box, b: Box) -> None:
    assert iou(a, b) == iou(b, a)
    assert 0.0 <= iou(a, b) <= 1.0
    assert iou(a, a) == pytest.approx(1.0)


@given(boxes(), boxes())
def test_iou_agrees_with_counting_cells(a: Box, b: Box) -> None:
    """Independent: rounded boxes as sets of unit cells, on a grid ten times coarser."""
    coarse = [Box(*(round(corner / 40) for corner in box.corners), VGA) for box in (a, b) if _survives(box)]
    assume(len(coarse) == 2)
    cells = [{(x, y) for x in range(int(c.x1), int(c.x2)) for y in range(int(c.y1), int(c.y2))} for c in coarse]
    assert iou(*coarse) == pytest.approx(len(cells[0] & cells[1]) / len(cells[0] | cells[1]))


def _survives(box: Box) -> bool:
    x1, y1, x2, y2 = (round(corner / 40) for corner in box.corners)
    return x2 > x1 and y2 > y1


@given(boxes())
def test_a_clipped_box_lies_in_its_frame_and_in_the_box(box: Box) -> None:
    clipped = box.clip()
    if clipped is None:
        assert box.x1 >= 640 or box.y1 >= 480 or box.x2 <= 0 or box.y2 <= 0
        return
    assert clipped.clip() == clipped
    assert clipped.x1 >= max(0, box.x1) and clipped.x2 <= min(640, box.x2)
    assert clipped.y1 >= max(0, box.y1) and clipped.y2 <= min(480, box.y2)
