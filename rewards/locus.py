"""The LOCUS reward: r = (1 − α)·IoU + α·format with α = 0.1 (arXiv 2606.16586).

The parts are judged apart. The form is paid whether or not the box is any good; a valid box is scored whether or not the
text thinks before it, so that a policy which forgot to think keeps a gradient towards the target. Anything outside of the
tags, or a second answer, earns neither.
"""

from __future__ import annotations

from data.sample import Sample
from rewards.format import think_answer_format
from rewards.iou import box_iou
from rewards.score import Completion, Score


def reward(sample: Sample, completion: Completion, *, alpha: float = 0.1) -> Score:
    """Score in [0, 1] with parts `iou` and `format`."""
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha weighs format against IoU and lies in [0, 1], got {alpha}")
    overlap = box_iou(sample, completion)
    form = think_answer_format(completion.text)
    return Score((1.0 - alpha) * overlap + alpha * form, parts={"iou": overlap, "format": form})
