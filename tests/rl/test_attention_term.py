"""The attention loss in a learner's SFT step: eqs. 5–10 on the whole maps, however the step is cut."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText
from verl.protocol import DataProto

from data.sample import Sample
from rl.batch import answer_batch, balance
from rl.config import AttentionLossConfig, LearnerConfig, LoraConfig, ModelConfig, OptimizerConfig
from rl.engines.base import Rendezvous
from rl.learner import Learner
from rl.objectives import LanguageModelObjective
from rl.prompting import PromptEncoder
from tests.rl.analysis_case import focus_samples, stock_inputs

LOSS = AttentionLossConfig(weight=3.0, margin=0.5)


def build(
    model_dir: Path,
    loss: AttentionLossConfig | None = LOSS,
    lora: int = 0,
    checkpointing: bool = True,
    **settings: Any,
) -> Learner:
    model = ModelConfig(path=str(model_dir), lora=LoraConfig(rank=lora))
    config = LearnerConfig(dtype="float32", activation_checkpointing=checkpointing, **settings)
    return Learner(model, config, OptimizerConfig(lr=1e-2), PromptEncoder.of(model), Rendezvous(), 1.0, loss)


@pytest.fixture
def learner(tiny_model_dir: Path) -> Iterator[Learner]:
    built = build(tiny_model_dir)
    yield built
    built.close()


def batch_of(encoder: PromptEncoder, shots: tuple[int, ...] = (1, 2, 4)) -> DataProto:
    """Prompts of different lengths, answers of different lengths."""
    samples = [focus_samples(1, shots=count)[0] for count in shots]
    answers = [encoder.answer_tokens("<answer>[1, 2, 3, 4]</answer>" + " left" * n) for n in range(len(samples))]
    return answer_batch(samples, answers, [encoder.prompt_length(sample) for sample in samples])


def updated(learner: Learner, budget: int = 10_000) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Metrics of one update, and the weights after it."""
    share = balance(batch_of(learner.encoder), 1, budget, "shared")[0]
    metrics = learner.update(share, LanguageModelObjective(), lr=1e-2)
    return metrics, {name: tensor.clone() for name, tensor in learner.full_weights()}


def largest_gap(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def test_the_term_is_the_papers_equations_on_the_whole_maps(learner: Learner, tiny_model_dir: Path) -> None:
    batch = batch_of(learner.encoder)
    metrics, _ = updated(learner)
    eager = AutoModelForImageTextToText.from_pretrained(tiny_model_dir, dtype=torch.float32, attn_implementation="eager")
    expected = []
    for sample, mask, tokens in zip(
        batch.non_tensor_batch["sample"], batch.batch["response_mask"], batch.batch["responses"], strict=True
    ):
        prompt = learner.encoder.encode(sample)
        answer = tokens[0, : int(mask.sum())].tolist()
        maps = eager(**stock_inputs(prompt, answer), output_attentions=True).attentions
        A_TT = torch.stack([layer[0] for layer in maps]).mean((0, 1))
        m_T = torch.zeros(A_TT.shape[0])
        m_T[: len(prompt.input_ids)] = prompt.box_mask(sample).float()
        P_NT = A_TT[: len(prompt.input_ids)][prompt.query_image_mask(sample)]
        delta_N = (P_NT * m_T).sum(1) / m_T.sum() - (P_NT * (1 - m_T)).sum(1) / (1 - m_T).sum()
        expected.append((LOSS.margin - delta_N).clamp(min=0).square().mean())
    assert metrics["loss/attention"] == pytest.approx(float(torch.stack(expected).mean().detach()), abs=1e-6)
    assert 0 < metrics["attention/box_mass"] < 1


def test_micro_batches_and_checkpointing_change_nothing(tiny_model_dir: Path) -> None:
    """Two updates each: the second one's losses are those of equal weights."""
    seen = []
    for budget, checkpointing in ((10_000, True), (10_000, False), (1, True)):
        learner = build(tiny_model_dir, checkpointing=checkpointing)
        seen += [[updated(learner, budget)[0] for _ in range(2)]]
        learner.close()
    for other in seen[1:]:
        for metrics, again in zip(seen[0], other, strict=True):
            assert again["loss/attention"] == pytest.approx(metrics["loss/attention"], abs=1e-6)
            assert again["loss/lm"] == pytest.approx(metrics["loss/lm"], abs=1e-5)
            assert again["grad_norm"] == pytest.approx(metrics["grad_norm"], rel=1e-3)


@pytest.mark.parametrize("stage", [2, 3])
def test_under_deepspeed_it_is_the_same(tiny_model_dir: Path, stage: int) -> None:
    """With checkpointing: what is recorded on the way is computed twice, the second time from gathered parameters."""
    seen = []
    for settings in ({}, {"engine": "deepspeed", "zero_stage": stage}):
        learner = build(tiny_model_dir, **settings)
        seen.append([updated(learner, budget=1)[0] for _ in range(2)])
        learner.close()
    for metrics, again in zip(*seen, strict=True):
        for name in ("loss/attention", "loss/lm", "attention/box_mass"):
            assert again[name] == pytest.approx(metrics[name], abs=1e-5)
        assert again["grad_norm"] == pytest.approx(metrics["grad_norm"], rel=1e-3)


def test_the_term_moves_the_weights_also_under_lora(tiny_model_dir: Path) -> None:
    for lora in (0, 4):
        ends = []
        for loss in (None, LOSS):
            learner = build(tiny_model_dir, loss, lora)
            metrics, weights = updated(learner)
            learner.close()
            assert ("loss/attention" in metrics) is (loss is not None)
            ends.append(weights)
        assert largest_gap(*ends) > 1e-4


def test_training_on_it_draws_attention_to_the_boxes(tiny_model_dir: Path) -> None:
    learner = build(tiny_model_dir, AttentionLossConfig(weight=10.0, margin=0.5, reduction="sum"))
    share = balance(batch_of(learner.encoder), 1, 10_000, "shared")[0]
    masses = [learner.update(share, LanguageModelObjective(), lr=1e-2)["attention/box_mass"] for _ in range(8)]
    learner.close()
    assert masses[-1] > 2 * masses[0]


def test_a_copy_that_only_keeps_its_rank_in_step_adds_nothing(learner: Learner) -> None:
    """Three samples over four ranks: the fourth computes on a silent copy."""
    batch, objective = batch_of(learner.encoder), LanguageModelObjective()
    whole = learner.update(balance(batch, 1, 10_000, "shared")[0], objective, lr=0.0)
    shares = balance(batch, 4, 10_000, "shared")
    parts = [learner.update(share, objective, lr=0.0)["loss/attention"] for share in shares]
    assert min(parts) == 0.0
    assert sum(parts) == pytest.approx(whole["loss/attention"], abs=1e-6)


def test_samples_without_supports_are_refused(learner: Learner, tiny_samples: list[Sample]) -> None:
    sample = tiny_samples[0]
    batch = answer_batch([sample], [[300, 301]], [learner.encoder.prompt_length(sample)])
    with pytest.raises(ValueError, match="supports"):
        learner.update(balance(batch, 1, 10_000, "shared")[0], LanguageModelObjective(), lr=0.0)
