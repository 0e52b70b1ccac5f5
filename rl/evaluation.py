"""Held-out localization: mean IoU, ACC@0.5, ACC@0.75, format rate, and whether the prediction picks the target.

mIoU alone misleads: a model that ignores the cue and finds *an* object scores well. So picks-target is reported beside it:
among the samples that have distractors, the share whose predicted centre is nearest to the target's centre.

Every metric is over all samples that were answered: an answer without a valid box has IoU 0 and picks nothing. A sample
whose rollout or reward failed was not answered; it is left out and counted in `failures`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from data.box import Box
from data.sample import Sample
from rewards.iou import box_iou
from rewards.parse import AnswerError, parse_answer
from rewards.score import Completion, RewardFailure, Score
from rl.protocols import Rewards
from rl.records import Rollout, RolloutFailure, Sampling
from rl.runlog import ValidationRecord


class EvaluationError(RuntimeError):
    """Nothing could be evaluated; the message counts the reasons."""


class Answerer(Protocol):
    """What an evaluation asks of `rl.protocols.Rollouts`: answers, and no new weights."""

    def generate(self, samples: Sequence[Sample], sampling: Sampling) -> list[list[Rollout | RolloutFailure]]: ...


@dataclass(frozen=True)
class Evaluation:
    """Metrics over a dataset, by name, and the record of every answered sample in the dataset's order."""

    metrics: dict[str, float]
    records: tuple[ValidationRecord, ...]


def evaluate(
    rollouts: Answerer,
    rewards: Rewards,
    samples: Sequence[Sample],
    complete: Callable[[Sample, str], Completion],
    sampling: Sampling,
    mode: str,
) -> Evaluation:
    """Answer every sample once (`sampling.n` is 1) and score the answers. `mode` names the sampling in the records."""
    answers = [group[0] for group in rollouts.generate(samples, replace(sampling, n=1))]
    answered = [(s, a) for s, a in zip(samples, answers, strict=True) if isinstance(a, Rollout)]
    requests = [(sample, complete(sample, answer.text)) for sample, answer in answered]
    verdicts = rewards.score(requests)
    judged = [
        (request, verdict)
        for request, verdict in zip(requests, verdicts, strict=True)
        if not isinstance(verdict, RewardFailure)
    ]
    if not judged:
        lost = [answer.reason for answer in answers if isinstance(answer, RolloutFailure)]
        lost += [verdict.reason for verdict in verdicts if isinstance(verdict, RewardFailure)]
        reasons = "; ".join(f"{count}× {reason}" for reason, count in Counter(lost).most_common(3))
        raise EvaluationError(f"none of {len(samples)} validation samples could be answered and judged: {reasons}")
    records = tuple(judged_record(sample, completion, mode) for (sample, completion), _ in judged)
    metrics = _metrics(records, [verdict for _, verdict in judged])
    return Evaluation(metrics | {"failures": float(len(samples) - len(judged))}, records)


def _metrics(records: Sequence[ValidationRecord], scores: Sequence[Score]) -> dict[str, float]:
    count = len(records)
    contested = [record.picks_target for record in records if record.distractors]
    metrics = {
        "mean_iou": sum(record.iou for record in records) / count,
        "acc@0.5": sum(record.iou >= 0.5 for record in records) / count,
        "acc@0.75": sum(record.iou >= 0.75 for record in records) / count,
        "parse_rate": sum(record.prediction is not None for record in records) / count,
        "reward": sum(score.total for score in scores) / count,
        "samples": float(count),
    }
    if contested:
        metrics["picks_target"] = sum(contested) / len(contested)
    if all("format" in score.parts for score in scores):
        metrics["format_rate"] = sum(score.parts["format"] > 0 for score in scores) / count
    return metrics


def judged_record(sample: Sample, completion: Completion, mode: str) -> ValidationRecord:
    """An answer against its sample. Raises ValueError when the sample's target lies outside its image."""
    image = sample.images[sample.target_image]
    try:
        predicted = parse_answer(completion.text, completion.frame).to(image.frame)
    except AnswerError:
        predicted = None
    return ValidationRecord(
        id=sample.id,
        width=image.width,
        height=image.height,
        target=sample.target.corners,
        prediction=None if predicted is None else predicted.corners,
        iou=box_iou(sample, completion),
        picks_target=predicted is not None and picks_target(predicted, sample),
        text=completion.text,
        mode=mode,
        distractors=tuple(box.corners for box in sample.distractors),
    )


def picks_target(predicted: Box, sample: Sample) -> bool:
    """Whether the predicted centre is nearer to the target's centre than to any distractor's; original pixels."""
    to_target = math.dist(predicted.center, sample.target.center)
    return all(to_target < math.dist(predicted.center, box.center) for box in sample.distractors)
