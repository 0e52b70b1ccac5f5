"""Ranks that compute one sequence together compute what one rank does: hidden states, gradients, losses, weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from rl.tiny_backbone import write
from rl.tiny_backbone_language import TinyShape
from tests.rl.attention_case import FAMILIES
from tests.rl.learner_case import largest_gap
from tests.rl.sequence_case import SCENARIOS, Outcome, hidden_and_gradients, on_ranks, outcome


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four heads that look at one key head, which two ranks therefore both need."""
    directory = tmp_path_factory.mktemp("tiny-heads")
    write(directory, shape=TinyShape(hidden_size=128, heads=4, kv_heads=1))
    return directory


@pytest.fixture(scope="module")
def two_ranks(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    """Two processes, once for all tests."""
    return on_ranks(2, 2, model_dir, tmp_path_factory.mktemp("sequence") / "found.pt")


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_and_gradients_of_every_family_are_one_ranks(
    two_ranks: dict[Any, Any], family: str, masked: bool
) -> None:
    hidden, gradients = hidden_and_gradients(family, masked, 1)
    shared_hidden, shared_gradients = two_ranks[family, masked]
    assert float((hidden - shared_hidden).abs().max()) <= 1e-12
    assert largest_gap(gradients, shared_gradients) <= 1e-12
    assert max(float(gradient.abs().max()) for gradient in gradients.values()) > 1e-3


def assert_equal_outcomes(one: Outcome, shared: Outcome) -> None:
    assert float(one.logprobs.abs().max()) > 1.0 and type(shared.logprobs) is Tensor
    assert float((one.logprobs - shared.logprobs).abs().max()) <= 1e-5
    for alone, together in zip(one.metrics, shared.metrics, strict=True):
        assert alone["grad_norm"] > 1e-3
        assert together == pytest.approx(alone, rel=1e-4, abs=1e-5)
    assert largest_gap(one.weights, shared.weights) <= 1e-5


@pytest.mark.parametrize("name", SCENARIOS)
def test_an_update_by_two_ranks_on_one_sequence_is_one_ranks(two_ranks: dict[Any, Any], model_dir: Path, name: str) -> None:
    assert_equal_outcomes(outcome(SCENARIOS[name], model_dir), two_ranks[name])
