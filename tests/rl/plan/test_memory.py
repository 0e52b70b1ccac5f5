"""Memory of roles: the learner's against a real engine's tensors, the others by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rl.config import Recipe, load_recipe
from rl.plan.gpus import find_gpu
from rl.plan.learner_memory import forwards, learner_items, reference_items
from rl.plan.memory import host_memory, kv_cache, role_memories
from rl.plan.memory_records import MemoryItem
from rl.plan.rollout_memory import rollout_items, weight_bytes
from rl.plan.shapes import shape_of
from rl.plan.workload import Workload
from tests.rl.plan.activation_case import Case
from tests.rl.plan.learner_total import measured_total, planned_items

GIB = 1 << 30
A100 = find_gpu("A100-80G")
WORKLOAD = Workload(900, 2048, 2, 3000, 6000, 250, 2048, ())
# Parts of equal weight: shards, gathered parameters and activations.
TOTAL = Case(layers=3, hidden=256, heads=4, intermediate=768, vocab=3000, text=150, answer=30)


def recipe(*overrides: str, name: str = "locus/qwen2_5_vl_7b") -> Recipe:
    return load_recipe(f"recipes/{name}.yaml", overrides)


def item(items: tuple[MemoryItem, ...], name: str) -> int:
    return sum(each.bytes for each in items if each.name == name)


@pytest.mark.parametrize(
    ("case", "ranks"),
    [
        pytest.param(replace(TOTAL, dtype=torch.bfloat16), 8, id="bfloat16"),
        pytest.param(replace(TOTAL, lora=8), 8, id="LoRA"),
        pytest.param(TOTAL, 8, id="float32", marks=pytest.mark.slow),
        pytest.param(TOTAL, 1, id="alone", marks=pytest.mark.slow),
    ],
)
def test_a_learner_holds_what_was_planned(case: Case, ranks: int, tmp_path: Path) -> None:
    planned = sum(each.bytes for each in planned_items(case, ranks, tmp_path))
    assert planned == pytest.approx(measured_total(case, ranks, tmp_path), rel=0.05)


@pytest.mark.parametrize(
    ("case", "ranks", "stage"),
    [
        pytest.param(TOTAL, 8, 3, id="3"),
        pytest.param(TOTAL, 8, 2, id="2", marks=pytest.mark.slow),
        pytest.param(replace(TOTAL, lora=8), 4, 3, id="3 with LoRA", marks=pytest.mark.slow),
    ],
)
def test_a_deepspeed_learner_holds_what_was_planned(case: Case, ranks: int, stage: int, tmp_path: Path) -> None:
    planned = sum(each.bytes for each in planned_items(case, ranks, tmp_path, stage))
    assert planned == pytest.approx(measured_total(case, ranks, tmp_path, stage), rel=0.10)


def test_the_7b_learner_on_paper() -> None:
    """8.29 B float32 parameters, gradients and two moments over four ranks."""
    seven = recipe()
    items = learner_items(seven, shape_of(seven.model), WORKLOAD, "grpo")
    share = 4 * 8_292_166_656 // 4
    for name, times in (("weights", 1), ("gradients", 1), ("optimizer", 2)):
        assert item(items, name) == pytest.approx(times * share, rel=1e-4)


def test_offloaded_shards_leave_the_gpu_and_stand_in_host_memory() -> None:
    here, away = recipe(), recipe("learner.offload=all")
    shape = shape_of(here.model)
    items = learner_items(away, shape, WORKLOAD, "grpo")
    assert item(items, "weights") == item(items, "gradients") == item(items, "optimizer") == 0
    moved = host_memory(away, shape, 1, 8).total - host_memory(here, shape, 1, 8).total
    assert moved == pytest.approx(16 * 8_292_166_656, rel=1e-3)


def test_what_waits_for_a_colocated_role_stands_in_host_memory() -> None:
    """The reference's 8.29 B float32 parameters; the bases of four samplers that are sent adapters alone."""
    ranks = ("learner.ranks=4", "reference.ranks=4", "rollout.actors=4", "cluster.placement=colocated")
    full, lora = recipe(*ranks), recipe(*ranks, "model.lora.rank=8")
    found = [host_memory(each, shape_of(each.model), 1, 8).items for each in (full, lora)]
    assert item(found[0], "reference") == pytest.approx(4 * 8_292_166_656, rel=1e-3)
    assert item(found[0], "sleeping samplers") == 0
    assert item(found[1], "sleeping samplers") == pytest.approx(4 * 2 * 8_292_166_656, rel=0.02)


def test_a_reference_on_the_learners_node_loads_beside_it() -> None:
    seven = recipe()
    shape = shape_of(seven.model)
    near, apart = (item(host_memory(seven, shape, 2, gpus).items, "loading") for gpus in (8, 4))
    assert near == 2 * apart == 2 * 4 * 8_292_166_656


def test_zero_keeps_masters_beside_parameters_in_the_compute_dtype() -> None:
    seven = recipe("learner.engine=deepspeed", "learner.zero_stage=3")
    items = learner_items(seven, shape_of(seven.model), WORKLOAD, "grpo")
    assert item(items, "weights") == pytest.approx(2 * 8_292_166_656 / 4, rel=1e-4)
    assert item(items, "optimizer") == pytest.approx(12 * 8_292_166_656 / 4, rel=1e-4)


def test_micro_batches_are_filled_with_mean_groups_and_bear_one_longest() -> None:
    """16,384 tokens: five groups of 900 + 8 · 250; the longest is 2,048 + 8 · 2,048 alone."""
    typical, longest = forwards(recipe(), WORKLOAD, "grpo", 4, 1)
    assert (typical.rows, typical.length, typical.answer_tokens) == (5, 2900, 10_000)
    assert (longest.rows, longest.length, longest.answer_tokens) == (1, 18_432, 16_384)
    assert typical.bias == 5 * 2000 * 2900  # of every group's answers, all its tokens
    (plain, _) = forwards(recipe("learner.layout=plain"), WORKLOAD, "grpo", 4, 1)
    assert (plain.rows, plain.length, plain.packed, plain.bias) == (8, 1150, False, 0)


def test_ranks_that_share_a_sequence_share_its_tokens() -> None:
    alone, together = (forwards(recipe(), WORKLOAD, "grpo", 4, n)[1] for n in (1, 4))
    assert together.length == alone.length // 4
    assert together.whole_length == alone.length


def test_a_reference_holds_whole_sequences_whatever_the_learner_shares() -> None:
    alone, together = recipe(), recipe("learner.sequence_parallel=4")
    shape = shape_of(alone.model)
    found = [reference_items(each, shape, WORKLOAD, "grpo") for each in (alone, together)]
    assert item(found[0], "activations") == item(found[1], "activations") > 0


def test_kv_cache_by_hand() -> None:
    """Qwen2.5-VL-7B: 2 · 28 layers · 4 heads · 128 · 2 bytes a token; two ranks halve the heads, eight leave one each."""
    for parallel, heads in ((1, 4), (2, 2), (8, 1)):
        seven = recipe(f"rollout.tensor_parallel={parallel}")
        cache = kv_cache(seven, shape_of(seven.model), WORKLOAD, A100)
        assert cache.bytes_per_token == 2 * 28 * heads * 128 * 2
    fixed = recipe("rollout.kv_cache_mib=1024")
    cache = kv_cache(fixed, shape_of(fixed.model), WORKLOAD, A100)
    assert (cache.bytes, cache.sequences, cache.longest) == (GIB, 18_724 // 1150, 18_724 // 4096)


def test_a_model_too_large_for_its_gpus_has_no_kv_cache() -> None:
    big = recipe("rollout.tensor_parallel=1", name="focus/qwen2_vl_72b")
    cache = kv_cache(big, shape_of(big.model), WORKLOAD, A100)
    assert cache.bytes < 0
    assert cache.longest == 0


def test_an_a100_profiles_half_the_tokens_of_other_large_gpus() -> None:
    """8,192 tokens × 2 bytes × 3 × (3,584 + 18,944) more in the decoder's block, at least."""
    seven = recipe()
    shape = shape_of(seven.model)
    a100, h100 = (item(rollout_items(seven, shape, WORKLOAD, find_gpu(n)), "activations") for n in ("A100-80G", "H100"))
    assert h100 - a100 >= 8192 * 2 * 3 * (3584 + 18944)


def test_rollout_weights_are_cut_over_tensor_parallel_ranks() -> None:
    whole, four = (recipe(f"rollout.tensor_parallel={n}") for n in (1, 4))
    shape = shape_of(whole.model)
    assert weight_bytes(whole, shape) == 2 * 8_292_166_656
    assert weight_bytes(four, shape) == pytest.approx(weight_bytes(whole, shape) / 4, rel=1e-3)


def test_every_stage_has_its_roles() -> None:
    focus = recipe(name="focus/qwen2_vl_7b")
    shape = shape_of(focus.model)
    roles = {stage: role_memories(focus, shape, WORKLOAD, stage, A100) for stage in focus.stages}
    assert [role.role for role in roles["sft"]] == ["learner", "rollout"]
    assert [(role.role, role.actors) for role in roles["grpo"]] == [("learner", 4), ("reference", 2), ("rollout", 2)]


def test_colocated_roles_are_one_whose_gpu_the_fullest_decides() -> None:
    apart = recipe("rollout.actors=4", "reference.ranks=4")
    together = recipe("rollout.actors=4", "reference.ranks=4", "cluster.placement=colocated")
    shape = shape_of(apart.model)
    (one,) = role_memories(together, shape, WORKLOAD, "grpo", A100)
    alone = role_memories(apart, shape, WORKLOAD, "grpo", A100)
    assert (one.role, one.actors, one.gpus_per_actor) == ("learner+reference+rollout", 4, 1)
    assert max(role.total for role in alone) < one.total < max(role.total for role in alone) + 4 * GIB


def test_recipes_that_ship_fit_the_80_gb_they_name() -> None:
    for name in ("locus/qwen2_5_vl_7b", "locus/mimo_vl_7b", "locus/qwen3_vl_4b_thinking", "focus/qwen2_vl_7b"):
        shipped = recipe(name=name)
        for stage in shipped.stages:
            for role in role_memories(shipped, shape_of(shipped.model), WORKLOAD, stage, A100):
                assert role.total < 80 * GIB, (name, role.role)
