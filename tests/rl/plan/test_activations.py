"""Activation bytes by arithmetic, compared with the peak of live tensors in real forwards and backwards of small models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rl import group_attention
from rl import policy as policy_module
from rl.batch import balance
from rl.config import AlgorithmConfig, ModelConfig
from rl.objectives import GrpoObjective
from rl.plan import activations as activation_arithmetic
from rl.plan.activations import Forward, activations, bias_elements, copied_keys, language_block, logits_bytes, scoring
from rl.plan.shapes import shape_of
from tests.rl.learner_case import build_learner, case_batch
from tests.rl.plan.activation_case import CASES, Case, build_policy, forward_of, inputs_of, measured, tensors_of
from tests.rl.plan.fake_decoder import fake_decoder_peak
from tests.rl.plan.live_bytes import LiveBytes

WITHIN = 0.10
# Each is another moment or module; tests/bench/bench_plan_memory.py prints the errors of all CASES.
QUICK = [
    Case(layers=3, text=100, answer=40),
    Case(layers=3, text=100, answer=40, checkpointed=False),
    Case(layers=3, text=100, answer=40, lora=4),
    Case(layers=2, prompts=2, text=60, answer=30, layout="plain", dtype=torch.bfloat16),
    Case(layers=2, hidden=128, vocab=6000, text=60, answer=100, intermediate=256),
    Case(layers=1, hidden=128, vision_hidden=128, vision_layers=3, grid=32, answer=4, intermediate=256, vocab=100),
    Case(family="qwen2_5_vl", layers=2, text=100, answer=30, vision_hidden=256, grid=24),
    Case(family="qwen3_vl", layers=2, text=100, answer=30, vision_hidden=256, grid=24),
]


@pytest.mark.parametrize("case", QUICK, ids=str)
def test_peaks_are_as_measured(case: Case, tmp_path: Path) -> None:
    found, predicted = measured(case, tmp_path)
    assert predicted == pytest.approx(found, rel=WITHIN)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_peaks_of_larger_cases_are_as_measured(case: Case, tmp_path: Path) -> None:
    found, predicted = measured(case, tmp_path)
    assert predicted == pytest.approx(found, rel=WITHIN)


@pytest.mark.parametrize(
    ("model", "rows", "length"),
    [
        ("Qwen/Qwen2.5-VL-7B-Instruct", 5, 2900),
        ("Qwen/Qwen2-VL-72B-Instruct", 1, 8192),
        ("Qwen/Qwen3-VL-32B-Thinking", 1, 8192),
    ],
)
def test_decoders_of_their_real_width_hold_what_is_predicted(model: str, rows: int, length: int) -> None:
    found, predicted = fake_decoder_peak(model, rows, length, layers=2)
    assert predicted == pytest.approx(found, rel=WITHIN)


def test_a_forward_without_gradients_is_as_measured(tmp_path: Path) -> None:
    """Old logprobs, and all that a reference does; once the decoder, once the logits hold most."""
    for case in (Case(layers=2, text=300, vocab=100), Case(layers=2, hidden=128, vocab=6000, answer=100)):
        policy, shape = build_policy(case, tmp_path)
        inputs = inputs_of(case, policy)
        with LiveBytes([*policy.parameters(), *policy.buffers()]) as live, torch.no_grad():
            before = live.now
            for tensor in tensors_of(inputs):
                live.see(tensor)
            policy(inputs, 1.0)
        assert scoring(shape, forward_of(inputs, torch.float32)) == pytest.approx(live.peak - before, rel=WITHIN)


def test_a_decoder_block_on_paper() -> None:
    """Qwen2.5-VL-7B, bfloat16, one row of 1,000 tokens whose answers branch: the output put together is its third Q."""
    shape = shape_of(ModelConfig(path="Qwen/Qwen2.5-VL-7B-Instruct")).language
    forward = Forward(rows=1, length=1000, answer_tokens=0, patches=0, bytes_per_number=2, bias=400 * 1000)
    norms = 2 * (4 * 3584 + 4 + 2 * 2 * 3584)
    attention = 5 * 2 * 3584 + 4 * 28 + 2 * 2 * 128
    block = language_block(shape, forward)
    assert block.saved == 1000 * (norms + attention + 4 * 2 * 18944)
    assert block.input == 1000 * 2 * 3584


def test_embeddings_of_a_shared_row_are_whole_on_every_rank() -> None:
    """A quarter of 8,000 tokens: two tensors of 8,000 × 3,584 in bfloat16."""
    shape = shape_of(ModelConfig(path="Qwen/Qwen2.5-VL-7B-Instruct"))
    alone = Forward(rows=1, length=2000, answer_tokens=1000, patches=0, bytes_per_number=2)
    shared = replace(alone, whole_length=8000)
    more = activations(shape, shared, True).language - activations(shape, alone, True).language
    assert more == 2 * 8000 * 3584 * 2


def test_biases_of_long_answers_are_cut() -> None:
    """8 × 150 behind 5,350 together. 16 × 1,000 behind 5,000: two thousand at a time (3 × 8 million is over 16.8)."""
    assert bias_elements(5350, 150, 8) == 1200 * (5350 + 1200)
    assert bias_elements(5000, 1000, 16) == 8 * 2000 * (5000 + 2000)
    assert bias_elements(5000, 1000, 1) == copied_keys(5000, 1000, 1) == copied_keys(5350, 150, 8) == 0
    assert copied_keys(5000, 1000, 16) == 7 * (5000 + 2000)


def test_peaks_of_answers_in_blocks_are_as_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """16 answers, 2 behind a prompt of 364 at a time."""
    for module in (group_attention, activation_arithmetic):
        monkeypatch.setattr(module, "BIAS_ELEMENTS", 60 * (364 + 60))
    for checkpointed in (True, False):
        case = Case(layers=3, text=300, answers=16, answer=30, checkpointed=checkpointed)
        found, predicted = measured(case, tmp_path)
        assert predicted == pytest.approx(found, rel=WITHIN)


def test_logits_exist_a_chunk_at_a_time() -> None:
    shape = shape_of(ModelConfig(path="Qwen/Qwen2.5-VL-7B-Instruct")).language
    forward = Forward(1, 20000, 18000, 0, 2)
    assert logits_bytes(shape, forward) == 5 * 4 * 152064 * 2048
    assert logits_bytes(shape, replace(forward, answer_tokens=100)) == 5 * 4 * 152064 * 100


def test_under_lora_images_leave_nothing_behind() -> None:
    forward = Forward(1, 1000, 100, 40_000, 2)
    trained, lora = (
        activations(shape_of(ModelConfig(path="Qwen/Qwen2-VL-7B-Instruct", **changed)), forward, checkpointed=True)
        for changed in ({}, {"freeze_vision": True})
    )
    assert lora.vision == 0
    assert trained.language - lora.language == 32 * 40_000 * 2 * 1280 + 40_000 * 4 * 2 * 1280  # tower's inputs, merger


class KeepsEntropy(GrpoObjective):
    """An objective without an entropy term that holds on to the entropies' graph, as their caller once did."""

    def __call__(self, logprobs: Tensor, entropy: Tensor, *rest: Any) -> Tensor:
        self.kept = entropy
        return super().__call__(logprobs, entropy, *rest)


def test_an_update_keeps_no_logits_for_an_entropy_that_is_not_trained(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held through backward, the entropies of a token keep 9 bytes × vocabulary, of all chunks."""
    monkeypatch.setattr(policy_module, "LOGITS_CHUNK", 8)
    learner = build_learner(tiny_model_dir, activation_checkpointing=True)
    share = balance(case_batch(learner.encoder, groups=3, answers=4), 1, 10_000, "shared")[0]
    peaks = []
    for objective in (GrpoObjective(AlgorithmConfig()), KeepsEntropy(AlgorithmConfig())):
        learner.update(share, objective, lr=0.0)  # the optimizer's state is there from now on
        with LiveBytes([*learner.engine.policy.parameters(), *learner.engine.policy.buffers()]) as live:
            learner.update(share, objective, lr=0.0)
        peaks.append(live.peak)
    learner.close()
    vocabulary = learner.engine.policy.base.lm_head.weight.shape[0]
    assert peaks[1] - peaks[0] > 0.8 * 9 * vocabulary * (share.totals.tokens - 8)
