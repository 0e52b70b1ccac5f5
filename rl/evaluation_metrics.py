"""An evaluated set in figures: every metric with its 95 % bootstrap interval, and the mean of several datasets.

An answer without a valid box has IoU 0 in `mean_iou` and the accuracies, is left out of `mean_iou_parsed`, and picks
nothing. A sample that was not answered at all is in no metric; it is counted as a failure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rl.bootstrap import Floats, Interval, generator, interval, ratio, replicates
from rl.runlog import ValidationRecord


def _parsed(record: ValidationRecord) -> float:
    return float(record.prediction is not None)


# name → (value, weight) of a record; the metric is Σ value·weight / Σ weight.
METRICS: Mapping[str, Callable[[ValidationRecord], tuple[float, float]]] = {
    "mean_iou": lambda record: (record.iou, 1.0),
    "mean_iou_parsed": lambda record: (record.iou, _parsed(record)),
    "parse_rate": lambda record: (_parsed(record), 1.0),
    "acc@0.5": lambda record: (float(record.iou >= 0.5), 1.0),
    "acc@0.75": lambda record: (float(record.iou >= 0.75), 1.0),
    "picks_target": lambda record: (float(record.picks_target), float(bool(record.distractors))),
}


@dataclass(frozen=True)
class Measured:
    """Metrics by name, those that no sample bears on left out; and the bootstrap's replicates of all, [resamples, M]."""

    metrics: Mapping[str, Interval]
    replicates: Floats


def measure(records: Sequence[ValidationRecord], seed: int, *names: object) -> Measured:
    """Metrics of the answered samples of one set. `names` (dataset, shots) give the set draws of its own."""
    if not records:
        return Measured({}, np.empty((0, len(METRICS))))
    pairs_MN2 = np.array([[metric(record) for record in records] for metric in METRICS.values()])
    values_MN, weights_MN = pairs_MN2[..., 0], pairs_MN2[..., 1]
    return _measured(ratio(values_MN, weights_MN), replicates(values_MN, weights_MN, generator(seed, *names)))


def average(sets: Sequence[Measured]) -> Measured:
    """The mean over datasets, each of equal weight, each resampled within itself; metrics that every dataset has."""
    shared = [name for name in METRICS if all(name in measured.metrics for measured in sets)]
    values = [np.mean([one.metrics[name].value for one in sets]) if name in shared else np.nan for name in METRICS]
    return _measured(np.array(values), np.mean([measured.replicates for measured in sets], axis=0))


def _measured(values_M: Floats, replicates_RM: Floats) -> Measured:
    metrics = {
        name: interval(float(value), replicates_RM[:, place])
        for place, (name, value) in enumerate(zip(METRICS, values_M, strict=True))
        if not np.isnan(value)
    }
    return Measured(metrics, replicates_RM)
