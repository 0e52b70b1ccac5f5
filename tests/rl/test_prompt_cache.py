"""A learner of one rank encodes a step's prompts once, one of several may again; nothing stays when a step is published."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from data.sample import Sample
from rl.actors.publishing import PublishingRank
from rl.batch import balance
from rl.config import AlgorithmConfig
from rl.learner import Learner
from rl.objectives import GrpoObjective
from rl.prompt_cache import KeptPrompts
from rl.prompting import EncodedPrompt
from tests.rl.learner_case import build_learner, case_batch

BUDGET = 200  # tokens: several micro-batches


def counted(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts, by sample, how often its images are decoded and processed."""
    encode, count = learner.encoder._encode, Counter[str]()

    def counting(sample: Sample) -> EncodedPrompt:
        count[sample.id] += 1
        return encode(sample)

    monkeypatch.setattr(learner.encoder, "_encode", counting)
    return count


def test_a_step_encodes_a_prompt_once_and_lets_it_go(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = build_learner(tiny_model_dir)
    batch = case_batch(learner.encoder)
    (share,) = balance(batch, 1, BUDGET, learner.config.layout)
    assert len(share.micro_batches) > 1
    count = counted(learner, monkeypatch)
    learner.logprobs(share)
    learner.logprobs(share)
    assert set(count.values()) == {1} and learner.encoder._kept.nbytes > 0
    learner.update(share, GrpoObjective(AlgorithmConfig(kl_coefficient=0.0)), lr=1e-3)
    assert set(count.values()) == {1} and len(count) == 5
    assert learner.encoder._kept.nbytes == 0


def test_what_went_to_another_rank_is_let_go_when_the_step_is_published(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = build_learner(tiny_model_dir)
    batch = case_batch(learner.encoder)
    first, other = balance(batch, 2, BUDGET, learner.config.layout)
    learner.logprobs(first)
    learner.update(other, GrpoObjective(AlgorithmConfig(kl_coefficient=0.0)), lr=1e-3)
    assert learner.encoder._kept.nbytes > 0
    count = counted(learner, monkeypatch)
    PublishingRank(learner).publish(1, ["full"])
    assert learner.encoder._kept.nbytes == 0
    learner.update(first, GrpoObjective(AlgorithmConfig(kl_coefficient=0.0)), lr=1e-3)
    assert len(count) == len(first.batch)  # none of them was found again


def test_a_frozen_policy_keeps_nothing(tiny_model_dir: Path) -> None:
    reference = build_learner(tiny_model_dir, frozen=True)
    (share,) = balance(case_batch(reference.encoder), 1, BUDGET, reference.config.layout)
    reference.logprobs(share)
    assert reference.encoder._kept.nbytes == 0


class Weight:
    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes


def test_bytes_are_counted_and_the_oldest_make_room() -> None:
    kept = KeptPrompts[Weight](10)
    weights = {name: Weight(4) for name in "abc"}
    for name, weight in weights.items():
        kept.put(name, weight)
    assert kept.nbytes == 8
    assert [kept.take(name) for name in "abc"] == [None, weights["b"], weights["c"]]
    assert kept.nbytes == 0 and kept.take("b") is None
    kept.put("a", Weight(11))
    assert kept.take("a") is None
    kept.put("a", Weight(6))
    kept.put("a", Weight(7))
    assert kept.nbytes == 7
