"""The bootstrap against scipy's on the same draws, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from rl.bootstrap import Interval, generator, interval, ratio, replicates

RNG = np.random.default_rng(5)
IOU = RNG.random(60)
PARSED = (RNG.random(60) < 0.7).astype(float)
ONES = np.ones(60)


def _share(values: np.ndarray, weights: np.ndarray, axis: int) -> np.ndarray:
    return (values * weights).sum(axis) / weights.sum(axis)


def test_it_equals_scipys_percentile_bootstrap_on_the_same_draws() -> None:
    """scipy too draws an index matrix [resamples, samples] from the generator it is given, all metrics' samples together."""
    values, weights = np.stack([IOU, IOU]), np.stack([ONES, PARSED])
    ours = replicates(values, weights, np.random.default_rng(3), 2000)
    for metric, weight in enumerate((ONES, PARSED)):
        theirs = stats.bootstrap(
            (IOU, weight), _share, paired=True, method="percentile", n_resamples=2000, rng=np.random.default_rng(3)
        )
        np.testing.assert_allclose(ours[:, metric], theirs.bootstrap_distribution, rtol=1e-12)
        found = interval(ratio(values, weights)[metric], ours[:, metric])
        low, high = theirs.confidence_interval
        assert found == Interval(pytest.approx(_share(IOU, weight, 0)), pytest.approx(low), pytest.approx(high))


def test_drawn_in_blocks_it_is_the_same_distribution() -> None:
    whole = replicates(IOU[None], ONES[None], np.random.default_rng(0))
    blocks = replicates(IOU[None], ONES[None], np.random.default_rng(1), block=700)
    assert whole.shape == blocks.shape == (10_000, 1)
    assert stats.ks_2samp(whole[:, 0], blocks[:, 0]).pvalue > 0.001


def test_two_samples_by_hand() -> None:
    """Draws of (0, 1): mean 0, ½ or 1 with probability ¼, ½, ¼; so the 95 % interval is everything."""
    made = replicates(np.array([[0.0, 1.0]]), np.ones((1, 2)), np.random.default_rng(0))[:, 0]
    assert set(made) == {0.0, 0.5, 1.0}
    assert np.mean(made == 0.5) == pytest.approx(0.5, abs=0.02)
    assert interval(0.5, made) == Interval(0.5, 0.0, 1.0)


def test_a_constant_has_no_width_and_a_metric_that_nobody_bears_no_value() -> None:
    values, weights = np.full((2, 4), 0.3), np.array([[1.0] * 4, [0.0] * 4])
    assert ratio(values, weights) == pytest.approx([0.3, np.nan], nan_ok=True)
    made = replicates(values, weights, np.random.default_rng(0), 50)
    assert made[:, 0] == pytest.approx([0.3] * 50)
    assert np.isnan(made[:, 1]).all()


def test_draws_without_a_bearer_are_left_out_of_the_interval() -> None:
    """One of three samples bears the metric: (2/3)³ of the draws miss it, in all others the value is its own."""
    made = replicates(np.array([[0.8, 0.1, 0.1]]), np.array([[1.0, 0.0, 0.0]]), np.random.default_rng(0))[:, 0]
    assert np.isnan(made).mean() == pytest.approx(8 / 27, abs=0.02)
    found = interval(0.8, made)
    assert (found.low, found.high) == (pytest.approx(0.8), pytest.approx(0.8))


def test_every_dataset_and_shot_count_has_draws_of_its_own() -> None:
    first = generator(0, "TAO", 4).integers(0, 1000, 20)
    assert (first == generator(0, "TAO", 4).integers(0, 1000, 20)).all()
    for other in (generator(1, "TAO", 4), generator(0, "TAO", 2), generator(0, "GOT", 4)):
        assert (first != other.integers(0, 1000, 20)).any()


def test_nothing_cannot_be_resampled() -> None:
    with pytest.raises(ValueError, match="needs samples"):
        replicates(np.empty((1, 0)), np.empty((1, 0)), np.random.default_rng(0))
