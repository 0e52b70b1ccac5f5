"""GRPO's advantages and loss against TRL's formulas, written out here in numpy for one fixed case, term by term.

TRL (GRPOTrainer): A_i = (r_i − mean r) / (std r + ε), std unbiased; per token
    −min(ρ A, clip(ρ, 1−ε_low, 1+ε_high) A) + β (exp(Δ) − Δ − 1),   ρ = exp(new − old),   Δ = ref − new
summed over the tokens of all answers and divided by their number (loss_type "bnpo", the token mean).
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from verl.protocol import DataProto

from rl.advantages import group_advantages
from rl.batch import BatchTotals
from rl.config import AlgorithmConfig
from rl.meter import Meter
from rl.objectives import GrpoObjective, LanguageModelObjective

LENGTHS = [[3, 5, 2], [4, 1, 5]]
REWARDS = [[0.1, 0.9, 0.6], [0.0, 1.0, 0.3]]


def fixed_case() -> DataProto:
    rng = np.random.default_rng(7)
    shape = (2, 3, 5)
    mask = torch.zeros(shape)
    for n, group in enumerate(LENGTHS):
        for g, length in enumerate(group):
            mask[n, g, :length] = 1.0
    old = torch.tensor(rng.normal(-1.0, 0.5, shape), dtype=torch.float32)
    return DataProto.from_dict(
        tensors={
            "response_mask": mask,
            "loss_mask": mask.clone(),
            "rewards": torch.tensor(REWARDS),
            "old_logprobs": old,
            "rollout_logprobs": old + torch.tensor(rng.normal(0.0, 0.05, shape), dtype=torch.float32),
            "reference_logprobs": old + torch.tensor(rng.normal(0.0, 0.3, shape), dtype=torch.float32),
        }
    )


def new_logprobs(batch: DataProto) -> torch.Tensor:
    step = torch.tensor(np.random.default_rng(8).normal(0.0, 0.3, (2, 3, 5)), dtype=torch.float32)
    return (batch.batch["old_logprobs"] + step).requires_grad_()


def loss_of(config: AlgorithmConfig, batch: DataProto, new: torch.Tensor) -> torch.Tensor:
    batch.batch["advantages"] = group_advantages(batch, config)
    return GrpoObjective(config)(new, torch.zeros_like(new), batch, BatchTotals.of(batch, 1), Meter())


def trl_advantages(normalize: bool = True) -> np.ndarray:
    rewards = np.array(REWARDS)
    centred = rewards - rewards.mean(1, keepdims=True)
    return centred / (rewards.std(1, ddof=1, keepdims=True) + 1e-6) if normalize else centred


def tokens_of(batch: DataProto, new: torch.Tensor) -> dict[str, np.ndarray]:
    named = {name: batch.batch[name].double().numpy() for name in ("old_logprobs", "reference_logprobs", "loss_mask")}
    return named | {"new": new.detach().double().numpy()}


def test_advantages_are_trls() -> None:
    batch = fixed_case()
    ours = group_advantages(batch, AlgorithmConfig())
    assert np.allclose(ours[:, :, 0].numpy(), trl_advantages(), atol=1e-6)
    assert torch.equal(ours == 0, batch.batch["response_mask"] == 0)


def test_dr_grpo_leaves_the_deviation_out_and_rloo_compares_with_the_others() -> None:
    batch = fixed_case()
    plain = group_advantages(batch, AlgorithmConfig(normalize_by_std=False))
    assert np.allclose(plain[:, :, 0].numpy(), trl_advantages(normalize=False), atol=1e-6)
    rewards = np.array(REWARDS)
    others = (rewards.sum(1, keepdims=True) - rewards) / 2
    rloo = group_advantages(batch, AlgorithmConfig(advantage="rloo"))
    assert np.allclose(rloo[:, :, 0].numpy(), rewards - others, atol=1e-6)


def test_an_answer_that_does_not_exist_takes_no_part_in_its_group() -> None:
    batch = fixed_case()
    batch.batch["response_mask"][0, 2] = 0.0
    ours = group_advantages(batch, AlgorithmConfig())[0, :, 0]
    pair = np.array([0.1, 0.9])
    expected = (pair - pair.mean()) / (pair.std(ddof=1) + 1e-6)
    assert np.allclose(ours.numpy(), [*expected, 0.0], atol=1e-6)


@pytest.mark.parametrize(("low", "high", "beta"), [(0.2, 0.2, 0.0), (0.2, 0.28, 0.04), (0.2, 0.3, 0.01)])
def test_the_loss_is_trls(low: float, high: float, beta: float) -> None:
    batch = fixed_case()
    new = new_logprobs(batch)
    config = AlgorithmConfig(clip_low=low, clip_high=high, kl_coefficient=beta, dual_clip=1e9)
    t = tokens_of(batch, new)
    advantages = trl_advantages()[:, :, None]
    ratio = np.exp(t["new"] - t["old_logprobs"])
    policy = -np.minimum(ratio * advantages, np.clip(ratio, 1 - low, 1 + high) * advantages)
    delta = t["reference_logprobs"] - t["new"]
    per_token = policy + beta * (np.exp(delta) - delta - 1)
    expected = (per_token * t["loss_mask"]).sum() / t["loss_mask"].sum()
    assert loss_of(config, batch, new).item() == pytest.approx(expected, abs=1e-6)


def test_gspo_weighs_a_whole_answer() -> None:
    batch = fixed_case()
    new = new_logprobs(batch)
    config = AlgorithmConfig(loss="gspo", loss_aggregation="seq-mean-token-mean", clip_low=3e-4, clip_high=4e-4)
    t = tokens_of(batch, new)
    lengths = t["loss_mask"].sum(-1)
    ratio = np.exp(((t["new"] - t["old_logprobs"]) * t["loss_mask"]).sum(-1) / lengths)
    advantages = trl_advantages()
    expected = -np.minimum(ratio * advantages, np.clip(ratio, 1 - 3e-4, 1 + 4e-4) * advantages).mean()
    assert loss_of(config, batch, new).item() == pytest.approx(expected, abs=1e-6)


def test_dr_grpo_divides_by_a_constant() -> None:
    batch = fixed_case()
    new = new_logprobs(batch)
    config = AlgorithmConfig(
        normalize_by_std=False, loss_aggregation="seq-mean-token-sum-norm", loss_scale=16, dual_clip=1e9, clip_high=0.2
    )
    t = tokens_of(batch, new)
    advantages = trl_advantages(normalize=False)[:, :, None]
    ratio = np.exp(t["new"] - t["old_logprobs"])
    policy = -np.minimum(ratio * advantages, np.clip(ratio, 0.8, 1.2) * advantages)
    expected = (policy * t["loss_mask"]).sum() / 6 / 16
    assert loss_of(config, batch, new).item() == pytest.approx(expected, abs=1e-6)


def test_on_policy_the_ratio_is_one_and_the_kl_to_oneself_is_zero() -> None:
    batch = fixed_case()
    new = batch.batch["old_logprobs"].clone().requires_grad_()
    batch.batch["reference_logprobs"] = new.detach().clone()
    meter = Meter()
    batch.batch["advantages"] = group_advantages(batch, AlgorithmConfig())
    objective = GrpoObjective(AlgorithmConfig(kl_coefficient=0.04))
    objective(new, torch.zeros_like(new), batch, BatchTotals.of(batch, 1), meter)
    metrics = meter.reduce(lambda values: values, lambda values: values)
    assert metrics["policy/ratio_max"] == 1.0
    assert metrics["loss/kl"] == 0.0


@pytest.mark.parametrize("name", ["k1", "k2", "k3"])
def test_kl_estimators_by_name(name: str) -> None:
    batch = fixed_case()
    new = new_logprobs(batch)
    t = tokens_of(batch, new)
    gap = t["new"] - t["reference_logprobs"]
    per_token = {"k1": gap, "k2": 0.5 * gap**2, "k3": np.exp(-gap) + gap - 1}[name]
    meter = Meter()
    batch.batch["advantages"] = torch.zeros(2, 3, 5)
    objective = GrpoObjective(AlgorithmConfig(kl_coefficient=1.0, kl_estimator=name))
    loss = objective(new, torch.zeros_like(new), batch, BatchTotals.of(batch, 1), meter)
    expected = (per_token * t["loss_mask"]).sum() / t["loss_mask"].sum()
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_truncated_importance_weights_scale_tokens() -> None:
    batch = fixed_case()
    new = new_logprobs(batch)
    config = AlgorithmConfig(rollout_is="token", rollout_is_threshold=1.02, dual_clip=1e9)
    t = tokens_of(batch, new)
    rollout = batch.batch["rollout_logprobs"].double().numpy()
    weight = np.minimum(np.exp(t["old_logprobs"] - rollout), 1.02)
    advantages = trl_advantages()[:, :, None]
    ratio = np.exp(t["new"] - t["old_logprobs"])
    policy = -np.minimum(ratio * advantages, np.clip(ratio, 0.8, 1.2) * advantages) * weight
    expected = (policy * t["loss_mask"]).sum() / t["loss_mask"].sum()
    assert loss_of(config, batch, new).item() == pytest.approx(expected, abs=1e-6)


def test_micro_batches_and_ranks_add_up_to_the_whole_batch() -> None:
    batch = fixed_case()
    config = AlgorithmConfig(kl_coefficient=0.04)
    batch.batch["advantages"] = group_advantages(batch, config)
    whole_new = new_logprobs(batch)
    totals = BatchTotals.of(batch, 2)
    objective = GrpoObjective(config)
    objective(whole_new, torch.zeros_like(whole_new), batch, totals, Meter()).backward()
    parts_new = new_logprobs(batch)
    for row in range(2):
        part = parts_new[row : row + 1]
        objective(part, torch.zeros_like(part), batch.select_idxs([row]), totals, Meter()).backward()
    assert torch.allclose(whole_new.grad, parts_new.grad, atol=1e-7)


def test_the_language_model_loss_is_cross_entropy() -> None:
    batch = fixed_case()
    logits = torch.randn(2, 3, 5, 11, generator=torch.Generator().manual_seed(0))
    targets = torch.randint(0, 11, (2, 3, 5), generator=torch.Generator().manual_seed(1))
    logprobs = logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    mask = batch.batch["loss_mask"].bool()
    loss = LanguageModelObjective()(logprobs, logprobs * 0, batch, BatchTotals.of(batch, 1), Meter())
    assert loss.item() == pytest.approx(torch.nn.functional.cross_entropy(logits[mask], targets[mask]).item(), abs=1e-6)
