"""make_plan: what fits and what does not, and why; placement, hours and cost follow from the phases."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rl.config import load_recipe
from rl.plan import plan as plan_module
from rl.plan.gpus import find_gpu
from rl.plan.memory import role_memories
from rl.plan.packing import places
from rl.plan.plan import Plan, make_plan, usable
from rl.plan.shapes import shape_of
from rl.plan.workload import Workload
from tests.rl.plan.plan_case import workload

LOCUS, FOCUS_72B = "recipes/locus/qwen2_5_vl_7b.yaml", "recipes/focus/qwen2_vl_72b.yaml"
CUE: Workload = workload(prompt=800, answer=250, images=2, patches=1900)


def planned(path: str, *overrides: str) -> Plan:
    return make_plan(load_recipe(path, overrides), CUE)


def told(plan: Plan) -> str:
    return "; ".join(problem.what for problem in plan.problems)


def test_the_papers_run_fits_its_node_and_costs_what_its_steps_take() -> None:
    plan = planned(LOCUS, "plan.price=2")
    assert plan.fits
    (stage,) = plan.stages
    assert plan.hours == pytest.approx(194 * stage.step_seconds / 3600)
    assert plan.usd == pytest.approx(plan.hours * 8 * 2)
    assert {role.role: role.actors for role in stage.roles} == {"learner": 4, "reference": 2, "rollout": 2}
    assert (plan.gpus_used, stage.answers, stage.answer_tokens) == (8, 4096, 4096 * 250)


def test_disk_holds_the_checkpoints_that_stay_one_more_and_the_export() -> None:
    """12 bytes a parameter, three times, and 2; two stages keep two each."""
    plan = planned(LOCUS)
    numel = plan.shape.numel
    assert plan.disk_bytes == (3 * 12 + 2) * numel
    both = planned(LOCUS, "stages=[sft,grpo]", "sft.steps=10")
    assert both.disk_bytes == (5 * 12 + 2) * numel


def test_memory_is_the_other_halfs() -> None:
    plan = planned(LOCUS)
    recipe = load_recipe(LOCUS)
    assert plan.hardware is not None
    held = role_memories(recipe, shape_of(recipe.model), CUE, "grpo", plan.hardware.gpu)
    assert plan.stages[0].roles == held


def test_a_gpu_that_is_too_small_is_named_with_what_fills_it() -> None:
    plan = planned(LOCUS, "learner.ranks=1", "rollout.actors=1")
    assert not plan.fits
    assert "a learner GPU needs" in told(plan)
    assert "GiB of 80.0 GiB" in told(plan)
    assert "optimizer" in told(plan)


def test_both_stages_of_a_recipe_are_planned() -> None:
    plan = planned("recipes/focus/qwen2_vl_7b.yaml")
    assert [stage.stage for stage in plan.stages] == ["sft", "grpo"]
    assert plan.hours == pytest.approx(sum(84 * stage.step_seconds for stage in plan.stages) / 3600)


def test_more_gpus_than_there_are() -> None:
    plan = planned(LOCUS, "plan.gpus_per_node=4")
    assert "the roles ask for 8 GPU, the cluster has 4" in told(plan)


def test_a_sampler_of_more_gpus_than_a_node_has() -> None:
    plan = planned(FOCUS_72B, "rollout.tensor_parallel=8", "plan.nodes=4", "plan.gpus_per_node=4")
    assert "asks one machine for 8 GPU, the largest has 4" in told(plan)


def test_a_sampler_is_not_cut_over_nodes() -> None:
    """Two samplers of four and five learner ranks are 13 GPUs: not on two nodes of six, on two of eight without a cut."""
    recipe = load_recipe(LOCUS, ["rollout.tensor_parallel=4", "learner.ranks=5", "algorithm.kl_coefficient=0"])
    roles = role_memories(recipe, shape_of(recipe.model), CUE, "grpo", find_gpu("A100-80G"))
    cut = places(roles, nodes=2, gpus_per_node=6)
    assert cut.missing is not None
    whole = places(roles, nodes=2, gpus_per_node=8)
    assert whole.missing is None
    assert whole.by_node["rollout"] == (2,)
    assert whole.nodes("learner") == 1


def test_colocated_roles_share_their_gpus() -> None:
    plan = planned(LOCUS, "cluster.placement=colocated", "learner.ranks=8", "reference.ranks=8", "rollout.actors=8")
    (role,) = plan.stages[0].roles
    assert set(role.role.split("+")) == {"learner", "reference", "rollout"}
    assert plan.gpus_used == 8


def test_a_learner_may_not_take_all_that_a_gpu_reports() -> None:
    assert usable("learner", 100 << 30) == usable("learner+rollout", 100 << 30) == 97 << 30
    assert usable("rollout", 100 << 30) == 100 << 30


def test_a_cache_too_small_for_one_sequence() -> None:
    plan = planned(LOCUS, "rollout.kv_cache_mib=100")
    assert "cannot hold one sequence of 4096 tokens" in told(plan)


def test_a_node_with_too_little_memory() -> None:
    plan = planned(LOCUS, "plan.host_memory_gb=32")
    assert "a node's memory must hold" in told(plan)


def test_more_nodes_are_never_slower_when_the_learner_takes_them() -> None:
    one = planned(LOCUS)
    two = planned(LOCUS, "plan.nodes=2", "learner.ranks=12")
    assert two.fits
    assert two.stages[0].step_seconds < one.stages[0].step_seconds


def test_answers_of_another_length_are_planned_as_given() -> None:
    plan = planned(LOCUS, "plan.answer_tokens=500")
    assert plan.workload.answer_tokens == 500
    assert ("answer_tokens", "recipe", "plan.answer_tokens") in plan.workload.sources


def test_validation_counts_what_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert planned(LOCUS, "validation.samples=77").validation_samples == 77
    assert planned(LOCUS, f"data.validation={tmp_path / 'none'}").validation_samples == 500


def test_without_a_gpu_the_hosts_memory_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = load_recipe("recipes/locus/tiny.yaml")
    plan = make_plan(tiny, replace(CUE, prompt_tokens=40.0))
    assert plan.hardware is None
    assert plan.stages == ()
    assert plan.usd is None
    monkeypatch.setattr(plan_module, "machine_memory", lambda: plan.host.total - 1)
    assert "a node's memory must hold" in told(make_plan(tiny, CUE))
    monkeypatch.setattr(plan_module, "machine_memory", lambda: plan.host.total)
    assert make_plan(tiny, CUE).fits
