"""Weights and adapters for a sampler of two workers, which are processes: each worker receives for itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from data.sample import Sample
from rl.records import Sampling
from rl.tiny_backbone import write
from rl.tiny_backbone_language import TinyShape
from rl.weights import checksum
from tests.rl.sampler_case import adapted, config_of, largest_mismatch, matrices, perturbed, running_sampler, sampler_config
from tests.rl.sync_case import sending

from rl.sampler import WeightsError  # isort: skip  (sampler_case sets vLLM's environment)

SAMPLING = Sampling(n=2, temperature=1.0, top_p=1.0, max_tokens=8, seed=3)
BOUND = 1e-4


@pytest.mark.slow
def test_every_worker_receives_every_bucket(tmp_path: Path, tiny_samples: list[Sample]) -> None:
    write(tmp_path, seed=0, shape=TinyShape(hidden_size=128, heads=4, kv_heads=2))
    base = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with running_sampler(sampler_config(tmp_path, tensor_parallel_size=2, max_lora_rank=8)) as sampler:
        first, second = sampler.seats()
        assert first == second
        for version, medium in enumerate(("shared_memory", "gloo"), start=1):
            model = perturbed(base, seed=version)
            with sending(model.state_dict().items(), version, medium, readers=2) as arrival:
                receipt = sampler.load_weights(arrival, version)
            assert receipt.checksum == checksum(model.state_dict().items())
            groups = sampler.generate(tiny_samples, SAMPLING)
            assert largest_mismatch(model, sampler.encoder, tiny_samples, groups) <= BOUND
        foreign = [*base.state_dict().items(), ("model.foreign.weight", torch.zeros(2)), ("more", torch.zeros(1 << 20))]
        with (
            sending(foreign, version=3, readers=2) as arrival,
            pytest.raises(WeightsError, match=r"model\.foreign\.weight"),
        ):
            sampler.load_weights(arrival, version=3)
        with sending(base.state_dict().items(), version=4, readers=2) as arrival:
            sampler.load_weights(arrival, version=4)
        policy = adapted(tmp_path, seed=4)
        with sending(matrices(policy).items(), version=5) as arrival:  # the engine's process alone, which writes a file
            sampler.load_adapter(arrival, config_of(policy), version=5)
        groups = sampler.generate(tiny_samples, SAMPLING)
        assert largest_mismatch(policy, sampler.encoder, tiny_samples, groups) <= BOUND
