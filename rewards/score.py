"""What a reward sees and what it returns.

    def reward(sample: Sample, completion: Completion, **knobs) -> Score | float

A reward is a pure function: same sample, same completion, same score; no clock, no network, no global state. It runs in
another process, off the main thread, under a time limit. When it cannot judge it raises: the exception becomes a
RewardFailure, which leaves its group and is counted. A failure is never a zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from data.box import Frame


@dataclass(frozen=True, slots=True)
class Completion:
    """A model's answer: its text, and the coordinate frame in which the numbers of its box are to be read.

    `text` is the assistant's whole turn: where the chat template opens `<think>` itself (Qwen3-VL-Thinking), that tag is
    part of it.
    `frame` belongs to the sample's target image: pixels after the processor's resize (Qwen2.5-VL, MiMo-VL) or 0–1000
    (Qwen2-VL, Qwen3-VL, LLaVA-OneVision).
    """

    text: str
    frame: Frame


@dataclass(frozen=True, slots=True)
class Score:
    """A reward's verdict: the total that GRPO sees, and its named parts for the logs. Finite, or ValueError."""

    total: float
    parts: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in (("total", self.total), *self.parts.items()):
            if not math.isfinite(value):
                raise ValueError(f"a score must be finite, got {name}={value}")


@dataclass(frozen=True, slots=True)
class RewardFailure:
    """A completion that could not be judged, and why."""

    reason: str
