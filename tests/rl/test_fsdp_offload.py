"""FSDP2 with its shards in host memory, and moved there and back between two updates: the same numbers as without."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import multiprocessing as mp
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule

from rl.batch import balance
from rl.config import ConfigError, load_recipe
from rl.engines.base import Rendezvous
from rl.learner import Learner
from tests.rl.learner_case import build_learner, case_batch, largest_gap, run_updates

BUDGET = 400  # tokens: several micro-batches an update, so that gradients accumulate where they are kept
Trained = tuple[list[dict[str, float]], dict[str, Tensor]]


def updated(learner: Learner, away: bool = False, world: int = 1) -> Trained:
    """Four updates, with a way to host memory and back in their midst if asked; metrics and the weights after them."""
    batch = case_batch(learner.encoder)
    metrics = run_updates(learner, batch, world, learner.rank)
    if away:
        learner.engine.offload()
        learner.engine.onload()
    metrics += run_updates(learner, batch, world, learner.rank)
    return metrics, {name: tensor.clone() for name, tensor in learner.full_weights()}


@pytest.fixture(scope="module")
def plain(tiny_model_dir: Path) -> Trained:
    learner = build_learner(tiny_model_dir, tokens_per_micro_batch=BUDGET)
    trained = updated(learner)
    learner.close()
    return trained


@pytest.mark.parametrize("offload", [None, "all"])
def test_shards_in_host_memory_or_on_their_way_train_to_the_same_bits(
    tiny_model_dir: Path, plain: Trained, offload: str | None
) -> None:
    learner = build_learner(tiny_model_dir, tokens_per_micro_batch=BUDGET, offload=offload)
    sharded = [module for module in learner.engine.policy.modules() if isinstance(module, FSDPModule)]
    groups = [group for module in sharded for group in module._get_fsdp_state()._fsdp_param_groups]
    assert groups and all(isinstance(group.offload_policy, CPUOffloadPolicy) == (offload == "all") for group in groups)
    parameters = {id(parameter) for parameter in learner.engine.policy.parameters()}
    metrics, weights = updated(learner, away=True)
    assert {id(parameter) for parameter in learner.engine.policy.parameters()} == parameters  # those the optimizer holds
    assert metrics == plain[0]
    assert largest_gap(weights, plain[1]) == 0.0
    learner.close()


def _rank(rank: int, world: int, port: int, model_dir: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    where = Rendezvous(rank, world, 0, "127.0.0.1", port)
    learner = build_learner(model_dir, where, tokens_per_micro_batch=BUDGET, offload="all")
    trained = updated(learner, away=True, world=world)
    learner.save(folder / "checkpoint")
    if rank == 0:
        torch.save(trained, folder / "trained.pt")
    learner.close()


@pytest.mark.slow
def test_two_ranks_in_host_memory_equal_one_and_leave_a_checkpoint_for_it(
    tiny_model_dir: Path, plain: Trained, tmp_path: Path
) -> None:
    (tmp_path / "checkpoint").mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_rank, args=(2, port, tiny_model_dir, tmp_path), nprocs=2)
    metrics, weights = torch.load(tmp_path / "trained.pt")
    for one, two in zip(plain[0], metrics, strict=True):
        assert one["loss/policy"] == pytest.approx(two["loss/policy"], abs=1e-6)
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-4)
    assert largest_gap(plain[1], weights) <= 5e-5
    learner = build_learner(tiny_model_dir)
    learner.load(tmp_path / "checkpoint")
    assert largest_gap(weights, dict(learner.full_weights())) == 0.0
    learner.close()


def test_a_frozen_policy_goes_and_comes_back(tiny_model_dir: Path) -> None:
    learner = build_learner(tiny_model_dir, frozen=True, offload="all")
    share = balance(case_batch(learner.encoder), 1, 10_000, "shared")[0]
    before = learner.logprobs(share)
    learner.engine.offload()
    learner.engine.onload()
    assert torch.equal(learner.logprobs(share), before)
    learner.close()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["learner.offload=optimizer"], ["learner.offload=optimizer", "learner.offload=all", "deepspeed"]),
        (["learner.offload=al"], ["learner.offload", "all"]),
        (["learner.offload=all", "model.quantization=nf4", "model.lora.rank=8"], ["learner.offload=all", "quantization"]),
    ],
)
def test_what_cannot_be_offloaded_is_refused(tmp_path: Path, overrides: list[str], words: list[str]) -> None:
    recipe: dict[str, Any] = {"name": "x", "model.path": "x", "data.train": "a", "data.validation": "b", "grpo.steps": 1}
    (tmp_path / "recipe.yaml").write_text("{}")
    given = [f"{key}={value}" for key, value in recipe.items()]
    load_recipe(tmp_path / "recipe.yaml", [*given, "learner.offload=all"])
    with pytest.raises(ConfigError) as error:
        load_recipe(tmp_path / "recipe.yaml", [*given, *overrides])
    assert all(word in str(error.value) for word in words)
