"""`learner.sequence_parallel` in the real program: ranks that share every sequence train as one rank does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.runs import Finished, run


def learnt(finished: Finished) -> list[dict[str, float]]:
    """What each step's update was, counted over the whole step."""
    assert finished.status == 0, finished.err
    names = ("loss/policy", "loss/kl", "grad_norm", "policy/entropy", "mismatch/max")
    return [{name: record[name] for name in names} for record in finished.metrics() if "grad_norm" in record]


@pytest.mark.slow
def test_three_ranks_on_every_sequence_train_as_one(recipe: Path) -> None:
    """The tiny model has three heads on one key head; the reference, on two ranks, shares no sequences."""
    common = ("grpo.steps=3", "reference.ranks=2")
    alone = learnt(run(recipe, *common, "learner.ranks=1"))
    shared = learnt(run(recipe, *common, "learner.ranks=3", "learner.sequence_parallel=3"))
    assert len(alone) == 3
    for one, three in zip(alone, shared, strict=True):
        assert three == pytest.approx(one, rel=1e-3, abs=1e-5)
