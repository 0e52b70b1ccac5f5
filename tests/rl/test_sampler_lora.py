"""The sampler with LoRA adapters on real vLLM: agrees with PEFT, swaps adapters, keeps the old one if a new one is bad."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText

from data.sample import Sample
from rl.records import Sampling
from rl.weights import checksum, merge_adapter
from tests.rl.sampler_case import (
    adapted,
    config_of,
    largest_mismatch,
    matrices,
    rollouts_of,
    running_sampler,
    sampler_config,
)
from tests.rl.sync_case import sending

from rl.sampler import VllmSampler, WeightsError  # isort: skip  (sampler_case sets vLLM's environment)

SAMPLING = Sampling(n=4, temperature=1.0, top_p=1.0, max_tokens=12, seed=3)
BOUND = 1e-4


@pytest.fixture(scope="module")
def engine(tiny_model_dir: Path) -> Iterator[VllmSampler]:
    with running_sampler(sampler_config(tiny_model_dir, max_lora_rank=8)) as sampler:
        yield sampler


def test_adapters_equal_peft_one_after_another(
    engine: VllmSampler, tiny_model_dir: Path, tiny_samples: list[Sample]
) -> None:
    for version, seed in ((1, 5), (2, 6)):
        model = adapted(tiny_model_dir, seed)
        receipt = engine.load_adapter(matrices(model).items(), config_of(model), version)
        assert (receipt.version, engine.version) == (version, version)
        assert receipt.checksum == checksum(matrices(model).items())
        for sampling in (SAMPLING, replace(SAMPLING, n=1, temperature=0.0)):
            groups = engine.generate(tiny_samples, sampling)
            assert {rollout.policy_version for rollout in rollouts_of(groups)} == {version}
            assert largest_mismatch(model, engine.encoder, tiny_samples, groups) <= BOUND
        with model.disable_adapter():
            assert largest_mismatch(model, engine.encoder, tiny_samples, groups) > 10 * BOUND


@pytest.mark.parametrize("medium", ["shared_memory", "gloo"])
def test_an_adapter_that_arrives_in_buckets_equals_peft(
    engine: VllmSampler, tiny_model_dir: Path, tiny_samples: list[Sample], medium: str
) -> None:
    model = adapted(tiny_model_dir, seed=4)
    with sending(matrices(model).items(), version=2, medium=medium) as arrival:
        receipt = engine.load_adapter(arrival, config_of(model), version=2)
    assert receipt.checksum == checksum(matrices(model).items())
    groups = engine.generate(tiny_samples, SAMPLING)
    assert largest_mismatch(model, engine.encoder, tiny_samples, groups) <= BOUND


def test_merged_full_weights_equal_peft_and_drop_the_adapter(
    engine: VllmSampler, tiny_model_dir: Path, tiny_samples: list[Sample]
) -> None:
    other = adapted(tiny_model_dir, seed=9)
    engine.load_adapter(matrices(other).items(), config_of(other), version=3)
    model = adapted(tiny_model_dir, seed=7)
    base = AutoModelForImageTextToText.from_pretrained(tiny_model_dir, dtype=torch.float32)
    merged = list(merge_adapter(base.state_dict().items(), matrices(model), scale=2.0))
    receipt = engine.load_weights(merged, version=4)
    assert receipt.checksum == checksum(merged)
    groups = engine.generate(tiny_samples, SAMPLING)
    assert largest_mismatch(model, engine.encoder, tiny_samples, groups) <= BOUND
    engine.load_weights(base.state_dict().items(), version=5)


def bad_adapters(model_dir: Path) -> dict[str, tuple[dict[str, Tensor], dict[str, Any]]]:
    large, fine = adapted(model_dir, seed=8, rank=16), adapted(model_dir, seed=8)
    foreign = {name.replace("q_proj", "elsewhere"): tensor for name, tensor in matrices(fine).items()}
    return {
        "rank": (matrices(large), config_of(large)),
        "elsewhere": (foreign, config_of(fine)),
    }


@pytest.mark.parametrize("fault", ["rank", "elsewhere"])
def test_a_bad_adapter_is_refused_and_the_one_before_stays(
    engine: VllmSampler, tiny_model_dir: Path, tiny_samples: list[Sample], fault: str
) -> None:
    model = adapted(tiny_model_dir, seed=5)
    engine.load_adapter(matrices(model).items(), config_of(model), version=10)
    before = rollouts_of(engine.generate(tiny_samples, SAMPLING))
    tensors, config = bad_adapters(tiny_model_dir)[fault]
    with pytest.raises(WeightsError, match=fault):
        engine.load_adapter(tensors.items(), config, version=11)
    assert engine.version == 10
    assert rollouts_of(engine.generate(tiny_samples, SAMPLING)) == before


def test_an_adapter_stream_that_breaks_off_leaves_the_one_before(
    engine: VllmSampler, tiny_model_dir: Path, tiny_samples: list[Sample]
) -> None:
    model = adapted(tiny_model_dir, seed=5)
    engine.load_adapter(matrices(model).items(), config_of(model), version=10)

    def cut_off() -> Iterator[tuple[str, Tensor]]:
        yield next(iter(matrices(model).items()))
        raise ConnectionError("the learner went away")

    with pytest.raises(WeightsError, match="the learner went away"):
        engine.load_adapter(cut_off(), config_of(model), version=11)
    assert engine.version == 10
    groups = engine.generate(tiny_samples, SAMPLING)
    assert largest_mismatch(model, engine.encoder, tiny_samples, groups) <= BOUND
