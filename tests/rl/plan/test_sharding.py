"""Shard bytes by arithmetic, compared with what FSDP2 and DeepSpeed really cut, under process groups of up to 64 ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import deepspeed
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.fsdp import FSDPModule, OffloadPolicy
from torch.distributed.tensor import DTensor

from rl.config import LearnerConfig, LoraConfig, ModelConfig, OptimizerConfig
from rl.engines.base import Rendezvous
from rl.engines.deepspeed import ZeroEngine
from rl.engines.deepspeed_config import enter, leave, zero_config
from rl.engines.fsdp import FsdpEngine
from rl.plan.shapes import shape_of, shipped
from rl.plan.sharding import PACKED_BYTES, Fsdp, Packed, Zero3, parameters, sharding_of
from rl.policy import Policy, build_model
from tests.rl.plan.activation_case import fake_group

TINY = "recipes/locus/tiny_model"
BIG = "Qwen/Qwen2-VL-72B-Instruct"


def big_config(folder: Path, layers: int | None = None, lora: int = 0) -> ModelConfig:
    """Qwen2-VL-72B, or its first layers."""
    config: dict[str, Any] = json.loads(shipped()[BIG].read_text())["config"]
    if layers is not None:
        config["num_hidden_layers"] = config["vision_config"]["depth"] = layers
    (folder / "config.json").write_text(json.dumps(config))
    return ModelConfig(path=str(folder), lora=LoraConfig(rank=lora))


def on_meta(config: ModelConfig, dtype: torch.dtype) -> Policy:
    return Policy(build_model(config, dtype, torch.bfloat16, torch.device("cpu"), with_weights=False), ())


def fsdp_bytes(config: ModelConfig, ranks: int, rank: int) -> tuple[int, int, int]:
    """Bytes that FSDP2 gives a rank: of all parameters, of those it trains, and what it allocates with its padding."""
    with fake_group(ranks, rank):
        engine = FsdpEngine.__new__(FsdpEngine)  # its way of cutting, without loading 294 GB
        engine.where, engine.device = Rendezvous(rank, ranks), torch.device("cpu")
        engine._offload_policy = OffloadPolicy()
        policy = engine._shard(on_meta(config, torch.float32), torch.bfloat16)
        held = [each for each in policy.parameters() if isinstance(each, DTensor)]
        assert len(held) == len(list(policy.parameters()))
        sizes = {each: 4 * each._local_tensor.numel() for each in held}
        modules = (module for module in policy.modules() if isinstance(module, FSDPModule))
        groups = (group for module in modules for group in module._get_fsdp_state()._fsdp_param_groups)
        allocated = sum(4 * each._sharded_param_data.numel() for group in groups for each in group.fsdp_params)
    return sum(sizes.values()), sum(size for each, size in sizes.items() if each.requires_grad), allocated


@pytest.mark.parametrize(("ranks", "rank"), [pytest.param(8, 0, marks=pytest.mark.slow), (16, 7), (64, 63)])
def test_fsdp_shards_of_the_72b_are_exact(ranks: int, rank: int, tmp_path: Path) -> None:
    config = big_config(tmp_path)
    held, trained, allocated = fsdp_bytes(config, ranks, rank)
    shape, sharding = shape_of(config), Fsdp(ranks, 2)
    shard = sharding.shard(shape, rank)
    assert (shard.weights, shard.gradients, shard.optimizer) == (held, trained, 2 * trained)
    assert sharding.shard(shape).weights == allocated
    assert held == 4 * 73_405_560_320 // ranks  # every first axis of this model divides by 64


@pytest.mark.parametrize(("ranks", "rank"), [(8, 7), (64, 63), (7, 6)])
def test_fsdp_shards_under_lora_and_with_uneven_ranks_are_exact(ranks: int, rank: int, tmp_path: Path) -> None:
    config = big_config(tmp_path, layers=2, lora=5)
    held, trained, allocated = fsdp_bytes(config, ranks, rank)
    shape, sharding = shape_of(config), Fsdp(ranks, 2)
    shard = sharding.shard(shape, rank)
    assert (shard.weights, shard.gradients, sharding.shard(shape).weights) == (held, trained, allocated)
    assert held < allocated  # padding: 5 rows of A over 8 ranks


def test_all_ranks_together_hold_the_model() -> None:
    shape = shape_of(ModelConfig(path="Qwen/Qwen3-VL-4B-Thinking"))
    for ranks in (1, 3, 24):
        assert sum(Fsdp(ranks, 2).shard(shape, rank).weights for rank in range(ranks)) == 4 * shape.numel


def zero3_bytes(config: ModelConfig, ranks: int, rank: int) -> int:
    """Bytes of a rank's slices, cut by DeepSpeed out of fake tensors."""
    with fake_group(ranks, rank):
        enter(Rendezvous(rank, ranks), False)
        policy = on_meta(config, torch.bfloat16)
        learner = LearnerConfig(engine="deepspeed", zero_stage=3, ranks=ranks)
        with FakeTensorMode(allow_non_fake_inputs=True):
            policy.to_empty(device="cpu")
            deepspeed.zero.Init(module=policy, config_dict_or_path=zero_config(learner, 1.0, 1, torch.device("cpu")))
            held = sum(each.ds_tensor.numel() * each.ds_tensor.element_size() for each in policy.parameters())
        leave(destroy_group=True)
    return held


@pytest.mark.parametrize(("ranks", "rank", "lora"), [(8, 0, 0), (64, 63, 0), (48, 47, 5)])
def test_zero3_slices_of_72b_shapes_are_exact(ranks: int, rank: int, lora: int, tmp_path: Path) -> None:
    config = big_config(tmp_path, layers=1, lora=lora)
    assert zero3_bytes(config, ranks, rank) == Zero3(ranks, 2).shard(shape_of(config), rank).weights


@pytest.mark.slow
def test_zero3_slices_of_the_whole_72b_are_exact(tmp_path: Path) -> None:
    config = big_config(tmp_path)
    assert zero3_bytes(config, 64, 63) == Zero3(64, 2).shard(shape_of(config), 63).weights == 2_293_923_760


def zero_engine_bytes(config: ModelConfig, learner: LearnerConfig, rank: int) -> tuple[int, int]:
    """Bytes of parameters and of float32 masters that a DeepSpeed engine of ours holds on a rank."""
    with fake_group(learner.ranks, rank):
        engine = ZeroEngine(config, learner, OptimizerConfig(), (), Rendezvous(rank, learner.ranks))
        zero = engine._engine.optimizer
        held = [each.ds_tensor if learner.zero_stage == 3 else each for each in engine.policy.parameters()]
        flat = zero.fp32_partitioned_groups_flat if learner.zero_stage == 3 else zero.single_partition_of_fp32_groups
        found = sum(each.numel() * each.element_size() for each in held), sum(4 * each.numel() for each in flat)
        leave(destroy_group=True)
    return found


@pytest.mark.parametrize(
    ("stage", "ranks", "rank", "dtype", "lora"),
    [(3, 8, 7, "bfloat16", 0), (2, 8, 7, "bfloat16", 0), (2, 64, 63, "float32", 8)],
)
def test_shards_of_a_deepspeed_engine_are_exact(stage: int, ranks: int, rank: int, dtype: str, lora: int) -> None:
    config = ModelConfig(path=TINY, lora=LoraConfig(rank=lora))
    learner = LearnerConfig(engine="deepspeed", zero_stage=stage, ranks=ranks, dtype=dtype)
    shard = sharding_of(config, learner, ranks).shard(shape_of(config), rank)
    assert zero_engine_bytes(config, learner, rank) == (shard.weights, shard.optimizer // 3)
    assert shard.gradients == shard.optimizer // 3


def test_a_packed_base_is_as_large_as_bitsandbytes_makes_it() -> None:
    """4 bits a weight; 8 bits a block of 64, and a float32 a 256 blocks, of scales."""
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = torch.randn(512, 1024)
    packed, state = functional.quantize_4bit(weight, compress_statistics=True)
    scales = state.absmax.numel() * state.absmax.element_size() + state.state2.absmax.numel() * 4
    assert packed.numel() + scales == round(weight.numel() * PACKED_BYTES)


def test_a_packed_base_is_whole_on_every_rank_and_its_adapter_is_not() -> None:
    config = ModelConfig(path="Qwen/Qwen2-VL-7B-Instruct", lora=LoraConfig(rank=8), quantization="nf4")
    shape = shape_of(config)
    one, four = (Packed(ranks, 2).shard(shape) for ranks in (1, 4))
    adapter = 4 * shape.numel_adapter
    assert one.weights - four.weights == adapter - adapter // 4
    kept = [each for each in parameters(shape) if not each.packed and not each.adapter]
    assert sum(each.numel for each in kept) < 0.25 * shape.numel  # tower, embedding and head in bfloat16, the rest packed
