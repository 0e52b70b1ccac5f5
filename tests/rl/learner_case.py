"""A fixed small GRPO update on a tiny model, run by any number of ranks: what the learner tests compare."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch import multiprocessing as mp
from verl.protocol import DataProto

from data.box import Box
from data.prompts import locus_prompt
from data.sample import Sample
from rewards.score import Score
from rl.advantages import group_advantages
from rl.batch import Group, balance, group_batch
from rl.config import AlgorithmConfig, LearnerConfig, LoraConfig, ModelConfig, OptimizerConfig
from rl.engines.base import Rendezvous
from rl.learner import Learner
from rl.objectives import GrpoObjective
from rl.prompting import PromptEncoder
from rl.records import Rollout
from tests.rl.pictures import png


def case_samples(count: int) -> list[Sample]:
    """Scenes of different sizes, so that prompts have different lengths."""
    rng = np.random.default_rng(3)
    samples = []
    for number in range(count):
        width, height = 112 + 28 * (number % 3), 112
        images = (png(rng, width, height), png(rng, 56, 56))
        box = Box(10, 12, 40, 50, images[0].frame)
        samples.append(Sample(f"case-{number}", "test", images, locus_prompt(), box))
    return samples


def case_batch(encoder: PromptEncoder, groups: int = 5, answers: int = 3) -> DataProto:
    """Ragged random answers with rewards; the sampler's logprobs are left at zero, nothing here reads them."""
    rng = np.random.default_rng(5)
    low, high = 300, 700  # words: no image placeholder, which a forward would look for an image behind
    made = []
    for sample in case_samples(groups):
        rollouts, scores = [], []
        for _ in range(answers):
            tokens = tuple(int(token) for token in rng.integers(low, high, rng.integers(1, 9)))
            length = encoder.prompt_length(sample)
            rollouts.append(Rollout(sample.id, tokens, (0.0,) * len(tokens), "", "stop", 0, length))
            scores.append(Score(float(rng.random())))
        made.append(Group(sample, tuple(rollouts), tuple(scores)))
    batch = group_batch(made)
    batch.batch["advantages"] = group_advantages(batch, AlgorithmConfig())
    return batch


def model_config(model_dir: Path, lora_rank: int = 0, quantization: str | None = None) -> ModelConfig:
    lora = LoraConfig(rank=lora_rank, alpha=2 * lora_rank)
    return ModelConfig(path=str(model_dir), lora=lora, quantization=quantization)


def build_learner(
    model_dir: Path,
    where: Rendezvous | None = None,
    lora_rank: int = 0,
    frozen: bool = False,
    quantization: str | None = None,
    **config: Any,
) -> Learner:
    model = model_config(model_dir, lora_rank, quantization)
    learner = LearnerConfig(**{"dtype": "float32", **config})
    optimizer = None if frozen else OptimizerConfig(lr=1e-2 if lora_rank else 1e-3)
    return Learner(model, learner, optimizer, PromptEncoder.of(model), where or Rendezvous(), temperature=0.8)


def run_updates(learner: Learner, batch: DataProto, world: int, rank: int, steps: int = 2) -> list[dict[str, float]]:
    algorithm = AlgorithmConfig(kl_coefficient=0.0)
    budget, layout = learner.config.tokens_per_micro_batch, learner.config.layout
    return [
        learner.update(balance(batch, world, budget, layout)[rank], GrpoObjective(algorithm), lr=1e-3) for _ in range(steps)
    ]


def _rank(
    rank: int,
    world: int,
    port: int,
    model_dir: Path,
    out: Path,
    lora_rank: int,
    save_to: Path | None,
    base: str | None,
    config: dict[str, Any],
) -> None:
    torch.set_num_threads(1)
    where = Rendezvous(rank, world, 0, "127.0.0.1", port)
    learner = build_learner(model_dir, where, lora_rank, quantization=base, **{"tokens_per_micro_batch": 400, **config})
    batch = case_batch(learner.encoder)
    metrics = run_updates(learner, batch, world, rank)
    if save_to is not None:
        save_to.mkdir(exist_ok=True)
        learner.save(save_to)
    weights = {name: tensor.clone() for name, tensor in learner.full_weights()}
    if rank == 0:
        torch.save({"metrics": metrics, "weights": weights}, out)
    learner.close()


def on_ranks(
    world: int,
    model_dir: Path,
    out: Path,
    lora_rank: int = 0,
    save_to: Path | None = None,
    quantization: str | None = None,
    **config: Any,
) -> dict[str, Any]:
    """Two updates on `world` processes: metrics a step and the full weights afterwards. `config`: of the learner."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_rank, args=(world, port, model_dir, out, lora_rank, save_to, quantization, config), nprocs=world)
    loaded: dict[str, Any] = torch.load(out)
    return loaded


def largest_gap(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)
