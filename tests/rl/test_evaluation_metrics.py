"""The metrics of an evaluated set, by hand."""

from __future__ import annotations

import pytest

from rl.evaluation_metrics import average, measure
from rl.runlog import Corners, ValidationRecord

BOX: Corners = (0.0, 0.0, 10.0, 10.0)


def record(iou: float, parsed: bool = True, picks: bool = True, distractors: int = 1) -> ValidationRecord:
    prediction = BOX if parsed else None
    return ValidationRecord(
        "s", 20, 20, BOX, prediction, iou, picks and parsed, "", "greedy", distractors=(BOX,) * distractors
    )


def values(records: list[ValidationRecord]) -> dict[str, float]:
    return {name: figure.value for name, figure in measure(records, 0, "set").metrics.items()}


def test_an_answer_without_a_box_is_a_zero_over_all_and_absent_over_the_parsed() -> None:
    """IoU .9, .6, .3 and one without a box; two of the four have distractors, one of those is picked right."""
    records = [
        record(0.9),
        record(0.6, picks=False),
        record(0.3, distractors=0),
        record(0.0, parsed=False, distractors=0),
    ]
    assert values(records) == pytest.approx(
        {
            "mean_iou": 1.8 / 4,
            "mean_iou_parsed": 1.8 / 3,
            "parse_rate": 3 / 4,
            "acc@0.5": 2 / 4,
            "acc@0.75": 1 / 4,
            "picks_target": 1 / 2,
        }
    )


def test_thresholds_are_reached_by_equality() -> None:
    assert values([record(0.5), record(0.75)])["acc@0.5"] == 1.0
    assert values([record(0.5), record(0.75)])["acc@0.75"] == 0.5


def test_a_metric_that_no_sample_bears_is_left_out() -> None:
    found = values([record(0.0, parsed=False, distractors=0)])
    assert found == {"mean_iou": 0.0, "parse_rate": 0.0, "acc@0.5": 0.0, "acc@0.75": 0.0}
    assert measure([], 0, "set").metrics == {}


def test_the_interval_holds_the_value_and_narrows_with_samples() -> None:
    few = measure([record(0.2), record(0.8)] * 5, 0, "set").metrics["mean_iou"]
    many = measure([record(0.2), record(0.8)] * 500, 0, "set").metrics["mean_iou"]
    assert few.low < few.value < few.high and many.low < many.value < many.high
    # Standard error of a coin of .2 and .8 over N: .3/√N; 1.96 of them on each side.
    assert many.high - many.low == pytest.approx(2 * 1.96 * 0.3 / 1000**0.5, rel=0.05)
    assert few.high - few.low > 5 * (many.high - many.low)


def test_an_average_weighs_datasets_equally_and_resamples_each_within_itself() -> None:
    """1,000 samples at .2/.8 and 250 at .1/.5: standard errors .3/√1000 and .2/√250, halved and added in squares."""
    large = measure([record(0.2), record(0.8)] * 500, 0, "large")
    small = measure([record(0.1, distractors=0), record(0.5, distractors=0)] * 125, 0, "small")
    found = average([large, small]).metrics
    assert found["mean_iou"].value == pytest.approx((0.5 + 0.3) / 2)
    error = ((0.3**2 / 1000 + 0.2**2 / 250) ** 0.5) / 2
    assert found["mean_iou"].high - found["mean_iou"].low == pytest.approx(2 * 1.96 * error, rel=0.05)
    assert "picks_target" in large.metrics and "picks_target" not in found
