"""QLoRA: the policy is the 4-bit base with its adapter, for learner, reference, checkpoints, samplers and exports alike."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint import FileSystemReader

from rl.batch import balance
from rl.config import ConfigError, load_recipe
from rl.export import export_policy
from rl.quantization import is_quantized
from tests.rl.learner_case import build_learner, case_batch, largest_gap, on_ranks, run_updates

RANK = 4


def test_only_the_language_models_linear_layers_are_packed(tiny_model_dir: Path) -> None:
    learner = build_learner(tiny_model_dir, lora_rank=RANK, quantization="nf4")
    packed = [name for name, parameter in learner.engine.policy.named_parameters() if is_quantized(parameter)]
    layers = learner.engine.policy.base.config.get_text_config().num_hidden_layers
    assert len(packed) == 7 * layers
    assert all("language_model" in name and name.endswith("base_layer.weight") for name in packed)
    learner.close()


def test_the_samplers_get_weights_that_compute_what_the_learner_computes(tiny_model_dir: Path, tmp_path: Path) -> None:
    learner = build_learner(tiny_model_dir, lora_rank=RANK, quantization="nf4")
    batch = case_batch(learner.encoder)
    run_updates(learner, batch, 1, 0)
    share = balance(batch, 1, 10_000, "shared")[0]
    expected = learner.logprobs(share)
    export_policy(learner, tmp_path / "export")
    learner.close()
    original = load_file(tiny_model_dir / "model.safetensors")
    exported = load_file(tmp_path / "export" / "model.safetensors")
    assert exported.keys() == original.keys()
    assert all(exported[name].shape == original[name].shape for name in original)
    plain = build_learner(tmp_path / "export")
    assert float((plain.logprobs(share) - expected).abs().max()) <= 1e-5
    plain.close()
    unquantized = build_learner(tiny_model_dir)  # what a sampler with the checkpoint's own weights would see
    assert float((unquantized.logprobs(share) - expected).abs().max()) > 1e-3
    unquantized.close()


def test_one_rank_and_two_give_the_same_losses_and_weights(tiny_model_dir: Path, tmp_path: Path) -> None:
    one, two = (on_ranks(world, tiny_model_dir, tmp_path / f"{world}.pt", RANK, quantization="nf4") for world in (1, 2))
    for a, b in zip(one["metrics"], two["metrics"], strict=True):
        assert a["loss/policy"] == pytest.approx(b["loss/policy"], abs=1e-6)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
    assert largest_gap(one["weights"], two["weights"]) <= 2e-5


@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_a_checkpoint_holds_the_adapter_and_starts_a_reference_and_a_learner(
    tiny_model_dir: Path, tmp_path: Path, quantization: str | None
) -> None:
    straight = build_learner(tiny_model_dir, lora_rank=RANK, quantization=quantization)
    batch = case_batch(straight.encoder)
    share = balance(batch, 1, 10_000, "shared")[0]
    run_updates(straight, batch, 1, 0)
    straight.save(tmp_path)
    saved = FileSystemReader(tmp_path).read_metadata().state_dict_metadata
    assert saved and all(".lora_" in name for name in saved if name.startswith("model."))
    expected = straight.logprobs(share)
    metrics = run_updates(straight, batch, 1, 0)
    straight.close()

    reference = build_learner(tiny_model_dir, lora_rank=RANK, frozen=True, quantization=quantization)
    before = reference.logprobs(share)
    reference.engine.load_policy(tmp_path)
    assert torch.equal(reference.logprobs(share), expected)
    assert not torch.equal(before, expected)
    reference.close()

    resumed = build_learner(tiny_model_dir, lora_rank=RANK, quantization=quantization)
    resumed.load(tmp_path)
    assert run_updates(resumed, batch, 1, 0) == metrics
    resumed.close()


def test_a_quantized_base_without_an_adapter_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.lora\.rank"):
        load_recipe("recipes/locus/tiny.yaml", ["model.quantization=nf4"])
