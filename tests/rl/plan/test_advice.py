"""Advice: what it names has been planned and fits; the mildest change comes first; what changes the run comes last."""

from __future__ import annotations

import pytest

from rl.config import Recipe, load_recipe
from rl.plan import advice as advice_module
from rl.plan.advice import Advice, advise, with_changes
from rl.plan.plan import make_plan
from tests.rl.plan.test_plan import CUE, FOCUS_72B, LOCUS

FULL_72B = ["model.quantization=null", "model.lora.rank=0", "reference.placement=actor", "reference.ranks=2"]


def advised(path: str, *overrides: str) -> tuple[Recipe, Advice | None]:
    recipe = load_recipe(path, overrides)
    plan = make_plan(recipe, CUE)
    assert not plan.fits
    return recipe, advise(recipe, plan)


@pytest.mark.parametrize(
    ("path", "overrides"),
    [
        (LOCUS, ["plan.gpu=A100-40G"]),
        (LOCUS, ["plan.gpus_per_node=4"]),
        (LOCUS, ["learner.ranks=1", "rollout.actors=5"]),
        (FOCUS_72B, [*FULL_72B, "plan.nodes=8", "plan.host_memory_gb=500"]),
    ],
)
def test_what_is_advised_fits_when_it_is_planned_from_the_overrides(path: str, overrides: list[str]) -> None:
    _, advice = advised(path, *overrides)
    assert advice is not None
    again = make_plan(load_recipe(path, [*overrides, *advice.overrides.split()]), CUE)
    assert again.fits
    assert again.stages == advice.plan.stages


def test_a_learner_short_of_little_gets_smaller_micro_batches() -> None:
    recipe, advice = advised(LOCUS, "learner.tokens_per_micro_batch=100000")
    assert advice is not None
    assert dict(advice.changes) == {"learner.tokens_per_micro_batch": 50000}
    assert recipe.learner.tokens_per_micro_batch == 100000  # its own recipe is left alone


def test_training_everything_is_not_given_up_while_machines_would_do() -> None:
    _, advice = advised(FOCUS_72B, *FULL_72B)
    assert advice is not None
    assert not {"model.lora.rank", "model.quantization"} & dict(advice.changes).keys()


def test_where_nothing_helps_nothing_is_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advice_module, "MAX_TURNS", 1)
    _, advice = advised(LOCUS, "plan.gpu=L4", "plan.gpus_per_node=1", "plan.host_memory_gb=30")
    assert advice is None


def test_changes_reach_sections_of_sections() -> None:
    recipe = load_recipe(LOCUS)
    changed = with_changes(recipe, {"model.lora.rank": 4, "plan.nodes": 3})
    assert (changed.model.lora.rank, changed.plan.nodes, recipe.model.lora.rank) == (4, 3, 0)
