"""Ranks that compute one sequence together compute what one rank does: hidden states, gradients, losses, weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from rl.config import ConfigError, load_recipe
from rl.sequence_parallel import SequenceParallel
from rl.tiny_backbone import write
from rl.tiny_backbone_language import TinyShape
from tests.rl.attention_case import FAMILIES
from tests.rl.learner_case import largest_gap
from tests.rl.sequence_case import SCENARIOS, ZERO, Outcome, hidden_and_gradients, on_ranks, outcome


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four heads that look at one key head, which two ranks therefore both need."""
    directory = tmp_path_factory.mktemp("tiny-heads")
    write(directory, shape=TinyShape(hidden_size=128, heads=4, kv_heads=1))
    return directory


@pytest.fixture(scope="module")
def two_ranks(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    """Two processes, once for the tests below."""
    out = tmp_path_factory.mktemp("sequence") / "found.pt"
    return on_ranks(2, 2, model_dir, out, SCENARIOS, families=True)


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


def assert_equal_updates(one: Outcome, shared: Outcome) -> None:
    for alone, together in zip(one.metrics, shared.metrics, strict=True):
        assert alone["grad_norm"] > 1e-3
        assert together == pytest.approx(alone, rel=1e-4, abs=1e-5)
    assert largest_gap(one.weights, shared.weights) <= 1e-5


@pytest.mark.parametrize("name", SCENARIOS)
def test_an_update_by_two_ranks_on_one_sequence_is_one_ranks(two_ranks: dict[Any, Any], model_dir: Path, name: str) -> None:
    one, shared = outcome(SCENARIOS[name], model_dir), two_ranks[name]
    assert float(one.logprobs.abs().max()) > 1.0 and type(shared.logprobs) is Tensor
    assert float((one.logprobs - shared.logprobs).abs().max()) <= 1e-5
    assert_equal_updates(one, shared)


@pytest.mark.slow
@pytest.mark.parametrize("together", [2, 4])
def test_an_update_by_groups_of_four_ranks_is_one_ranks(model_dir: Path, tmp_path: Path, together: int) -> None:
    found = on_ranks(4, together, model_dir, tmp_path / "found.pt", SCENARIOS)
    for name, scenario in SCENARIOS.items():
        assert_equal_updates(outcome(scenario, model_dir), found[name])


@pytest.mark.slow
def test_deepspeed_ranks_on_one_sequence_are_one_fsdp_rank(model_dir: Path, tmp_path: Path) -> None:
    found = on_ranks(2, 2, model_dir, tmp_path / "found.pt", ZERO)
    for name, scenario in ZERO.items():
        sharded = replace(scenario, settings={})
        assert_equal_updates(outcome(sharded, model_dir), found[name])


def test_heads_that_cannot_be_shared_out_are_refused() -> None:
    with pytest.raises(ValueError, match=r"sequence_parallel` is 3: .* 4 heads and 2 key heads"):
        SequenceParallel(FAMILIES["qwen2_5_vl"](), 3)


@pytest.mark.parametrize(("ranks", "together"), [(3, 2), (2, 4), (2, 0)])
def test_groups_that_the_ranks_cannot_be_cut_into_are_refused(tmp_path: Path, ranks: int, together: int) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("{name: x, model: {path: x/y}, data: {train: a, validation: b}, grpo: {steps: 1}}")
    load_recipe(recipe, ["learner.ranks=4", "learner.sequence_parallel=2"])
    with pytest.raises(ConfigError, match=rf"learner.sequence_parallel` is {together}: `learner.ranks` \({ranks}\)"):
        load_recipe(recipe, [f"learner.ranks={ranks}", f"learner.sequence_parallel={together}"])
