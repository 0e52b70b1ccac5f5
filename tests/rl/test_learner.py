"""The learner: a group as one sequence, ranks, LoRA, checkpoints and exports change nothing that they should not."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor
from verl.protocol import DataProto

from rl.batch import balance
from rl.config import AlgorithmConfig
from rl.export import export_policy
from rl.learner import Learner
from rl.meter import Meter
from rl.objectives import GrpoObjective
from tests.rl.learner_case import build_learner, case_batch, case_samples, largest_gap, on_ranks, run_updates


@pytest.fixture
def learner(tiny_model_dir: Path) -> Iterator[Learner]:
    built = build_learner(tiny_model_dir)
    yield built
    built.close()


def gradients(learner: Learner, batch: DataProto, layout: str, budget: int) -> dict[str, Tensor]:
    learner.config.layout = layout
    share = balance(batch, 1, budget, layout)[0]
    objective = GrpoObjective(AlgorithmConfig())
    for rows in share.micro_batches:
        micro = share.batch.select_idxs(list(rows))
        logprobs, entropy = learner._forward(micro, learner._inputs(micro, learner._prompts(micro)))
        learner.engine.backward(objective(logprobs, entropy, micro, share.totals, Meter()))
    found = {
        name: parameter.grad.full_tensor().clone()
        for name, parameter in learner.engine.policy.named_parameters()
        if parameter.grad is not None
    }
    for parameter in learner.engine.policy.parameters():
        parameter.grad = None
    return found


def test_a_group_as_one_sequence_equals_one_row_an_answer(learner: Learner) -> None:
    batch = case_batch(learner.encoder)
    shared, plain = (logprobs_in(layout, learner, batch) for layout in ("shared", "plain"))
    assert float(shared.abs().max()) > 1.0
    assert float((shared - plain).abs().max()) <= 1e-5
    by_group, by_answer = (gradients(learner, batch, layout, 10_000) for layout in ("shared", "plain"))
    largest = max(float(grad.abs().max()) for grad in by_answer.values())
    assert largest_gap(by_group, by_answer) <= 1e-5 * max(largest, 1.0)


def logprobs_in(layout: str, learner: Learner, batch: DataProto) -> Tensor:
    learner.config.layout = layout
    return learner.logprobs(balance(batch, 1, 10_000, "shared")[0])


def test_the_forward_is_hugging_faces_own(learner: Learner, tiny_model_dir: Path) -> None:
    """Against a stock model, one answer at a time, its own positions and mask, log-softmax by hand."""
    batch = case_batch(learner.encoder, groups=2)
    share = balance(batch, 1, 10_000, "shared")[0]
    ours = learner.logprobs(share)
    model = AutoModelForImageTextToText.from_pretrained(tiny_model_dir, dtype=torch.float32).eval()
    for n, sample in enumerate(case_samples(2)):
        row = share.rows.index(n)
        prompt = learner.encoder.encode(sample)
        for g in range(3):
            length = int(batch.batch["response_mask"][n, g].sum())
            answer = batch.batch["responses"][n, g, :length]
            ids = torch.cat([prompt.input_ids, answer])[None]
            types = torch.cat([prompt.mm_token_type_ids, torch.zeros_like(answer)])[None]
            logits = model(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                mm_token_type_ids=types,
                pixel_values=prompt.pixel_values,
                image_grid_thw=prompt.image_grid_thw,
            ).logits[0, -length - 1 : -1]
            logits = logits / 0.8
            logits[:, list(learner.encoder.banned_token_ids)] = -torch.inf
            expected = logits.log_softmax(-1).gather(-1, answer[:, None])[:, 0]
            assert torch.allclose(ours[row, g, :length], expected, atol=2e-5)


def test_accumulated_micro_batches_equal_one(learner: Learner) -> None:
    batch = case_batch(learner.encoder)
    whole, cut = gradients(learner, batch, "shared", 10_000), gradients(learner, batch, "shared", 150)
    assert len(balance(batch, 1, 150, "shared")[0].micro_batches) > 2
    assert largest_gap(whole, cut) <= 1e-6


@pytest.fixture(scope="module")
def two_ranks(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """Two updates on two processes, and the checkpoint they left."""
    folder = tmp_path_factory.mktemp("two")
    return on_ranks(2, tiny_model_dir, folder / "two.pt", save_to=folder / "checkpoint"), folder / "checkpoint"


def test_one_rank_and_two_give_the_same_losses_and_weights(
    tiny_model_dir: Path, two_ranks: tuple[dict[str, Any], Path]
) -> None:
    learner = build_learner(tiny_model_dir, tokens_per_micro_batch=400)
    metrics = run_updates(learner, case_batch(learner.encoder), 1, 0)
    two, _ = two_ranks
    for a, b in zip(metrics, two["metrics"], strict=True):
        assert a["loss/policy"] == pytest.approx(b["loss/policy"], abs=1e-6)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
    assert largest_gap(dict(learner.full_weights()), two["weights"]) <= 2e-5
    learner.close()


def test_a_checkpoint_of_two_ranks_goes_on_in_one_bit_for_bit_in_weights(
    tiny_model_dir: Path, two_ranks: tuple[dict[str, Any], Path]
) -> None:
    saved, checkpoint = two_ranks
    learner = build_learner(tiny_model_dir)
    learner.load(checkpoint)
    assert largest_gap(saved["weights"], dict(learner.full_weights())) == 0.0
    learner.close()


def test_resuming_continues_bit_for_bit(tiny_model_dir: Path, tmp_path: Path) -> None:
    straight = build_learner(tiny_model_dir)
    batch = case_batch(straight.encoder)
    run_updates(straight, batch, 1, 0, steps=2)
    (tmp_path / "half").mkdir()
    straight.save(tmp_path / "half")
    metrics = run_updates(straight, batch, 1, 0, steps=2)
    expected = {name: tensor.clone() for name, tensor in straight.full_weights()}
    straight.close()
    resumed = build_learner(tiny_model_dir)
    resumed.load(tmp_path / "half")
    assert run_updates(resumed, batch, 1, 0, steps=2) == metrics
    assert largest_gap(expected, dict(resumed.full_weights())) == 0.0
    resumed.close()


def test_the_kl_to_an_identical_reference_is_zero(learner: Learner, tiny_model_dir: Path) -> None:
    batch = case_batch(learner.encoder)
    share = balance(batch, 1, 10_000, "shared")[0]
    share.batch.batch["reference_logprobs"] = learner.logprobs(share)
    share.batch.batch["rollout_logprobs"] = share.batch.batch["reference_logprobs"].clone()
    share.batch.meta_info["on_policy"] = True
    metrics = learner.update(share, GrpoObjective(AlgorithmConfig(kl_coefficient=0.1)), lr=1e-3)
    assert metrics["loss/kl"] <= 1e-9
    assert metrics["mismatch/max"] <= 1e-5
    assert metrics["policy/ratio_max"] == 1.0


def test_lora_trains_the_adapter_alone_and_its_merge_is_not_the_base(tiny_model_dir: Path, tmp_path: Path) -> None:
    learner = build_learner(tiny_model_dir, lora_rank=4)
    base = load_file(tiny_model_dir / "model.safetensors")
    before = {name: tensor.clone() for name, tensor in learner.base_weights()}
    run_updates(learner, case_batch(learner.encoder), 1, 0)
    assert largest_gap(before, dict(learner.base_weights())) == 0.0
    names = [name for name, _ in learner.adapter_weights()]
    assert names and all("language_model" in name for name in names)
    export_policy(learner, tmp_path / "export")
    merged = load_file(tmp_path / "export" / "model.safetensors")
    assert merged.keys() == base.keys()
    changed = [name for name in base if not torch.equal(base[name], merged[name])]
    assert len(changed) == len(names) / 2
    assert (tmp_path / "export" / "adapter" / "adapter_config.json").exists()
    learner.close()


def test_an_export_loads_and_computes_what_the_learner_computes(tiny_model_dir: Path, tmp_path: Path) -> None:
    learner = build_learner(tiny_model_dir)
    batch = case_batch(learner.encoder)
    run_updates(learner, batch, 1, 0)
    share = balance(batch, 1, 10_000, "shared")[0]
    expected = learner.logprobs(share)
    export_policy(learner, tmp_path / "export")
    learner.close()
    again = build_learner(tmp_path / "export")
    assert torch.equal(again.logprobs(share), expected)
    again.close()
    AutoProcessor.from_pretrained(tmp_path / "export")
    for name in ("generation_config.json", "tokenizer.json", "processor_config.json", "chat_template.jinja"):
        assert (tmp_path / "export" / name).read_bytes() == (tiny_model_dir / name).read_bytes()


def test_bfloat16_computes_near_float32_and_exports_what_it_computes_with(tiny_model_dir: Path, tmp_path: Path) -> None:
    exact, rounded = build_learner(tiny_model_dir), build_learner(tiny_model_dir, dtype="bfloat16")
    batch = case_batch(exact.encoder)
    share = balance(batch, 1, 10_000, "shared")[0]
    gap = (exact.logprobs(share) - rounded.logprobs(share)).abs()
    assert 0.0 < float(gap.max()) < 0.3
    metrics = run_updates(rounded, batch, 1, 0)
    assert all(math.isfinite(step["grad_norm"]) and step["grad_norm"] > 0 for step in metrics)
    assert all(parameter.dtype == torch.float32 for parameter in rounded.engine.policy.parameters())
    export_policy(rounded, tmp_path / "export")
    assert AutoModelForImageTextToText.from_pretrained(tmp_path / "export", dtype="auto").dtype == torch.bfloat16
    exact.close()
    rounded.close()
