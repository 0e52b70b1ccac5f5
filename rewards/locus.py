"""The LOCUS reward: r = (1 − α)·IoU + α·format with α = 0.1 (arXiv 2606.16586).

The two parts are judged apart: a valid box is scored wherever the text's only answer stands, and the form is paid whether or
not the box is any good. So a policy that forgot to think keeps a gradient towards the target.
"""

from __future__ import annotations

from data.sample import Sample
from rewards.format import think_answer_format
from rewards.iou import box_iou
from rewards.score import Completion, Score


def reward(sample: Sample, completion: Completion, *, alpha: float = 0.1, think_in_prompt: bool = False) -> Score:
    """Score in [0, 1] with parts `iou` and `format`. `think_in_prompt`: see think_answer_format."""
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha weighs format against IoU and lies in [0, 1], got {alpha}")
    overlap = box_iou(sample, completion)
    form = think_answer_format(completion.text, think_in_prompt=think_in_prompt)
    return Score((1.0 - alpha) * overlap + alpha * form, parts={"iou": overlap, "format": form})
