"""Teachers: the exact ones repeat the target, the imprecise one boxes it loosely and always the same way."""

from __future__ import annotations

import numpy as np
import pytest

from data.box import Box, Frame
from data.families import family_for
from rewards.iou import box_iou
from rewards.score import Completion
from rl.teachers import SLIP, TEACHERS, loosened
from tests.rl.learner_case import case_samples

FAMILY = family_for("qwen2_5_vl")


def test_a_loose_box_holds_the_target_and_slips_by_whole_steps() -> None:
    frame = Frame.original(160, 80)
    target = Box(40, 20, 60, 40, frame)
    loose = [loosened(target, np.random.default_rng(seed)) for seed in range(400)]
    lefts = [target.x1 - box.x1 for box in loose]
    bottoms = [box.y2 - target.y2 for box in loose]
    assert set(lefts) == {0.0, SLIP * 160}
    assert set(bottoms) == {0.0, SLIP * 80}
    assert np.mean(lefts) / (SLIP * 160) == pytest.approx(0.6, abs=0.08)


def test_a_loose_box_stays_in_its_image() -> None:
    frame = Frame.original(100, 100)
    for seed in range(20):
        box = loosened(Box(0, 0, 100, 100, frame), np.random.default_rng(seed))
        assert box.corners == (0, 0, 100, 100)


@pytest.mark.parametrize("name", TEACHERS)
def test_every_teacher_writes_an_answer_that_parses_and_repeats_itself(name: str) -> None:
    for sample in case_samples(3):
        answer = TEACHERS[name](sample, FAMILY, None)
        assert answer == TEACHERS[name](sample, FAMILY, None)
        overlap = box_iou(sample, Completion(answer, FAMILY.answer_frame(sample.images[0])))
        assert overlap > (0.4 if name == "locus_imprecise" else 0.9)
