"""Warmup and schedules, by hand."""

from __future__ import annotations

import pytest

from rl.config import OptimizerConfig
from rl.schedule import learning_rate


def test_the_learning_rate_warms_up_then_follows_its_schedule() -> None:
    config = OptimizerConfig(lr=1.0, warmup_ratio=0.1)
    assert [learning_rate(config, step, 20) for step in (0, 1, 2, 19)] == [0.5, 1.0, 1.0, 1.0]
    linear = OptimizerConfig(lr=1.0, schedule="linear")
    assert [learning_rate(linear, step, 4) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]
    cosine = OptimizerConfig(lr=1.0, schedule="cosine")
    assert learning_rate(cosine, 2, 4) == pytest.approx(0.5)
