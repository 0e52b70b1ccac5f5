"""What a real FSDP2 engine of one rank holds at its fullest, and what the planner says it does."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from rl.config import LearnerConfig, OptimizerConfig, Recipe, load_recipe
from rl.engines.base import Rendezvous
from rl.engines.fsdp import FsdpEngine
from rl.plan.learner_memory import RUNTIME, learner_items
from rl.plan.memory_records import MemoryItem
from rl.plan.shapes import shape_of
from rl.plan.workload import Workload
from tests.rl.plan.activation_case import Case, build_policy, fake_group, inputs_of, step, tensors_of, write_config
from tests.rl.plan.live_bytes import LiveBytes


def measured_total(case: Case, ranks: int, folder: Path) -> int:
    """Peak bytes of rank 0 of `ranks`: shards, gradients, moments, gathered blocks, activations. Collectives do nothing."""
    policy, _ = build_policy(replace(case, lora=0, dtype=torch.float32), folder)
    policy.base.save_pretrained(folder)
    model = write_config(case, folder)
    with fake_group(ranks, 0):
        where = Rendezvous(0, ranks)
        engine = FsdpEngine(model, learner_config(case, ranks), OptimizerConfig(), (), where)
        assert engine.optimizer is not None
        inputs = inputs_of(case, engine.policy)
        for _ in range(2):
            step(engine.policy, inputs)
            engine.optimizer.step()
        gc.collect()
        with LiveBytes(_held(engine)) as live:
            for tensor in tensors_of(inputs):
                live.see(tensor)
            step(engine.policy, inputs)
    return live.peak


def learner_config(case: Case, ranks: int) -> LearnerConfig:
    dtype = str(case.dtype).removeprefix("torch.")
    return LearnerConfig(
        ranks=ranks,
        dtype=dtype,
        layout=case.layout,
        activation_checkpointing=case.checkpointed,
        tokens_per_micro_batch=1 << 20,
    )


def planned_items(case: Case, ranks: int, folder: Path) -> tuple[MemoryItem, ...]:
    """Without the runtime, which tensors do not show."""
    recipe = recipe_of(case, ranks, folder)
    prompt = case.text + case.grid**2 // 4
    workload = Workload(prompt, prompt, 1, case.grid**2, case.grid**2, case.answer, case.answer, ())
    items = learner_items(recipe, shape_of(recipe.model), workload, "grpo")
    assert items[-1].bytes == RUNTIME
    return items[:-1]


def recipe_of(case: Case, ranks: int, folder: Path) -> Recipe:
    recipe = load_recipe("recipes/locus/tiny.yaml", [f"grpo.num_generations={case.answers}", "sync.bucket_mb=1"])
    recipe.model = write_config(case, folder)
    recipe.learner = learner_config(case, ranks)
    recipe.grpo.prompts_per_update = case.prompts * ranks
    return recipe


def _held(engine: FsdpEngine) -> list[Tensor]:
    assert engine.optimizer is not None
    parameters = list(engine.policy.parameters())
    gradients = [each.grad for each in parameters if each.grad is not None]
    moments = [value for state in engine.optimizer.state.values() for value in state.values()]
    return [*parameters, *gradients, *moments, *engine.policy.buffers()]
