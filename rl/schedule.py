"""The learning rate as a function of the update's number: nothing to save, nothing to resume."""

from __future__ import annotations

import math

from rl.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """The rate of 0-based update `step`: linear warmup over `warmup_ratio` of `total_steps`, then the schedule."""
    warmup = round(config.warmup_ratio * total_steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    factors = {"constant": 1.0, "linear": 1.0 - progress, "cosine": 0.5 * (1.0 + math.cos(math.pi * progress))}
    return config.lr * factors[config.schedule]
