"""IoU reward: how well the answer's box covers the target, in the frame in which the answer is to be read.

    target (original pixels) ── Box.to ──► completion.frame ─┐
                                                             ├─ IoU in [0, 1]
    answer text ── parse_answer ──► box ── Box.clip ─────────┘

Both boxes are clipped to the image first: a model is neither paid nor charged for what lies outside of the picture.
A text without a valid box scores 0. A target outside its image is the dataset's fault and not the model's: it raises.
"""

from __future__ import annotations

from data.box import iou
from data.sample import Sample
from rewards.parse import AnswerError, parse_answer
from rewards.score import Completion, Score


def box_iou(sample: Sample, completion: Completion) -> float:
    """IoU of the completion's box with the target, 0.0 when the text has no valid box.

    Raises ValueError when the sample's target lies outside its image.
    """
    target = sample.target.to(completion.frame).clip()
    if target is None:
        raise ValueError(f"sample {sample.id}: the target {sample.target.corners} lies outside its image; drop the sample")
    try:
        predicted = parse_answer(completion.text, completion.frame).clip()
    except AnswerError:
        return 0.0
    return 0.0 if predicted is None else iou(predicted, target)


def reward(sample: Sample, completion: Completion) -> Score:
    """IoU alone."""
    overlap = box_iou(sample, completion)
    return Score(overlap, parts={"iou": overlap})
