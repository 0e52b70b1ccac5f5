"""The FOCUS reward: r = IoU + 0.5·format (arXiv 2605.31145, stage 2)."""

from __future__ import annotations

from data.sample import Sample
from rewards.format import answer_only_format
from rewards.iou import box_iou
from rewards.score import Completion, Score


def reward(sample: Sample, completion: Completion, *, format_weight: float = 0.5) -> Score:
    """Score in [0, 1 + format_weight] with parts `iou` and `format`; `format` is 1 or 0 before its weight."""
    overlap = box_iou(sample, completion)
    form = answer_only_format(completion.text)
    return Score(overlap + format_weight * form, parts={"iou": overlap, "format": form})
