"""What one rank of a real engine holds at its fullest, and what the planner says it does."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from rl.config import LearnerConfig, ModelConfig, OptimizerConfig, Recipe, load_recipe
from rl.engines.base import Rendezvous
from rl.engines.deepspeed import ZeroEngine
from rl.engines.deepspeed_config import leave
from rl.engines.fsdp import FsdpEngine
from rl.plan.learner_memory import RUNTIME, learner_items
from rl.plan.memory_records import MemoryItem
from rl.plan.shapes import shape_of
from rl.plan.workload import Workload
from tests.rl.plan.activation_case import (
    TEMPERATURE,
    Case,
    build_policy,
    fake_group,
    inputs_of,
    step,
    tensors_of,
    write_config,
)
from tests.rl.plan.live_bytes import LiveBytes


def measured_total(case: Case, ranks: int, folder: Path, zero_stage: int = 0) -> int:
    """Peak bytes of rank 0 of `ranks`: shards, gradients, moments, gathered blocks, activations. Collectives do nothing.

    `zero_stage` of DeepSpeed; 0: FSDP2.
    """
    policy, _ = build_policy(replace(case, lora=0, dtype=torch.float32), folder)
    policy.base.save_pretrained(folder)
    model = write_config(case, folder)
    with fake_group(ranks, 0):
        return (_zero_total if zero_stage else _fsdp_total)(case, model, learner_config(case, ranks, zero_stage))


def _fsdp_total(case: Case, model: ModelConfig, learner: LearnerConfig) -> int:
    engine = FsdpEngine(model, learner, OptimizerConfig(), (), Rendezvous(0, learner.ranks))
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


def _zero_total(case: Case, model: ModelConfig, learner: LearnerConfig) -> int:
    """DeepSpeed keeps its buffers in many places, so they are counted from the engine's first tensor on."""
    with LiveBytes([]) as live:
        engine = ZeroEngine(model, learner, OptimizerConfig(), (), Rendezvous(0, learner.ranks))
        inputs = inputs_of(case, engine.policy)
        for tensor in [*engine.policy.parameters(), *tensors_of(inputs)]:
            live.see(tensor)
        for number in range(3):
            live.peak = live.now
            logprobs, entropy = engine.policy(inputs, TEMPERATURE)
            del entropy
            engine.backward(logprobs.sum())
            del logprobs
            if not number:
                engine._engine.step()
    leave(destroy_group=True)
    return live.peak


def learner_config(case: Case, ranks: int, zero_stage: int = 0) -> LearnerConfig:
    dtype = str(case.dtype).removeprefix("torch.")
    return LearnerConfig(
        engine="deepspeed" if zero_stage else "fsdp",
        zero_stage=zero_stage or 3,
        ranks=ranks,
        dtype=dtype,
        layout=case.layout,
        activation_checkpointing=case.checkpointed,
        tokens_per_micro_batch=1 << 20,
    )


def planned_items(case: Case, ranks: int, folder: Path, zero_stage: int = 0) -> tuple[MemoryItem, ...]:
    """Without the runtime, which tensors do not show."""
    recipe = recipe_of(case, ranks, folder, zero_stage)
    prompt = case.text + case.grid**2 // 4
    workload = Workload(prompt, prompt, 1, case.grid**2, case.grid**2, case.answer, case.answer, ())
    items = learner_items(recipe, shape_of(recipe.model), workload, "grpo")
    assert items[-1].bytes == RUNTIME
    return items[:-1]


def recipe_of(case: Case, ranks: int, folder: Path, zero_stage: int = 0) -> Recipe:
    recipe = load_recipe("recipes/locus/tiny.yaml", [f"grpo.num_generations={case.answers}", "sync.bucket_mb=1"])
    recipe.model = write_config(case, folder)
    recipe.learner = learner_config(case, ranks, zero_stage)
    recipe.grpo.prompts_per_update = case.prompts * ranks
    return recipe


def _held(engine: FsdpEngine) -> list[Tensor]:
    assert engine.optimizer is not None
    parameters = list(engine.policy.parameters())
    gradients = [each.grad for each in parameters if each.grad is not None]
    moments = [value for state in engine.optimizer.state.values() for value in state.values()]
    return [*parameters, *gradients, *moments, *engine.policy.buffers()]
