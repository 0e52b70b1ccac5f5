"""What a learner minimises on a micro-batch: the clipped GRPO objective with its KL term, or the language-model loss.

    L = agg_t[ max(−A ρ, −A clip(ρ, 1−ε_low, 1+ε_high)) ] + β · agg_t[ KL(π ‖ π_ref) ] − c · agg_t[ H(π) ],   ρ = π / π_old

Policy losses, KL estimators, aggregation and off-policy weights are verl's, chosen by the recipe's names. `agg_t` divides
by the counts of the whole update (BatchTotals), so gradients accumulate over micro-batches and ranks exactly as the loss
over the whole batch says.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from verl.protocol import DataProto
from verl.trainer.ppo.core_algos import agg_loss, get_policy_loss_fn, kl_penalty
from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_and_rejection_mask
from verl.workers.config.actor import ActorConfig

from rl.batch import BatchTotals
from rl.config import AlgorithmConfig
from rl.meter import Meter


class Objective(Protocol):
    """A loss over a micro-batch: answers' logprobs and entropies [N, G, R] → scalar, normalised by `totals`."""

    def __call__(self, logprobs: Tensor, entropy: Tensor, batch: DataProto, totals: BatchTotals, meter: Meter) -> Tensor: ...


def _flat(tensor: Tensor) -> Tensor:
    """[N, G, R] → [N·G, R], the shape of verl's functions."""
    return tensor.flatten(0, 1)


class GrpoObjective:
    """The policy objective of `config`."""

    def __init__(self, config: AlgorithmConfig) -> None:
        self.config = config
        self.policy_loss = get_policy_loss_fn(config.loss)
        self._actor_config = ActorConfig(
            strategy="fsdp",
            rollout_n=1,
            use_dynamic_bsz=True,
            clip_ratio=config.clip_high,
            clip_ratio_low=config.clip_low,
            clip_ratio_high=config.clip_high,
            clip_ratio_c=config.dual_clip,
            loss_agg_mode=config.loss_aggregation,
            loss_scale_factor=config.loss_scale,
        )

    def __call__(self, logprobs: Tensor, entropy: Tensor, batch: DataProto, totals: BatchTotals, meter: Meter) -> Tensor:
        self._set_totals(totals)
        mask, new = _flat(batch.batch["loss_mask"]), _flat(logprobs)
        recorded = batch.batch["old_logprobs"] if "old_logprobs" in batch.batch.keys() else None
        old = _flat(recorded) if recorded is not None else new.detach()
        weights, mask = self._off_policy(old, _flat(batch.batch["rollout_logprobs"]), mask, meter)
        loss, verl_metrics = self.policy_loss(
            old_log_prob=old,
            log_prob=new,
            advantages=_flat(batch.batch["advantages"]),
            response_mask=mask,
            loss_agg_mode=self.config.loss_aggregation,
            config=self._actor_config,
            rollout_is_weights=weights,
        )
        meter.add("loss/policy", loss.detach() / totals.world_size)
        meter.mean("policy/clip_fraction", torch.tensor(verl_metrics.get("actor/pg_clipfrac", 0.0)), mask.sum())
        meter.peak("policy/ratio_max", ((new.detach() - old).exp() * mask).max())
        return loss + self._kl(new, batch, mask, meter) - self._entropy(_flat(entropy), mask, meter)

    def _set_totals(self, totals: BatchTotals) -> None:
        self._actor_config.global_batch_info.update(
            dp_size=totals.world_size,
            batch_num_tokens=max(totals.tokens, 1),
            global_batch_size=max(totals.answers, 1),
            loss_scale_factor=self.config.loss_scale,
        )

    def _aggregate(self, values: Tensor, mask: Tensor) -> Tensor:
        return agg_loss(values, mask, self.config.loss_aggregation, **self._actor_config.global_batch_info)

    def _kl(self, new: Tensor, batch: DataProto, mask: Tensor, meter: Meter) -> Tensor:
        if not self.config.kl_coefficient:
            return new.new_zeros(())
        penalty = kl_penalty(new, _flat(batch.batch["reference_logprobs"]), self.config.kl_estimator)
        meter.mean("loss/kl", (penalty.detach() * mask).sum() / mask.sum().clamp(min=1), mask.sum())
        return self.config.kl_coefficient * self._aggregate(penalty, mask)

    def _entropy(self, entropy: Tensor, mask: Tensor, meter: Meter) -> Tensor:
        meter.mean("policy/entropy", (entropy.detach() * mask).sum() / mask.sum().clamp(min=1), mask.sum())
        if not self.config.entropy_coefficient:
            return entropy.new_zeros(())
        return self.config.entropy_coefficient * self._aggregate(entropy, mask)

    def _off_policy(self, old: Tensor, rollout: Tensor, mask: Tensor, meter: Meter) -> tuple[Tensor | None, Tensor]:
        """verl's importance weights and rejection mask for the gap between sampler and learner, when the recipe asks."""
        config = self.config
        if (config.rollout_is is None and config.rollout_rejection is None) or not mask.any():
            return None, mask
        weights, kept, _ = compute_rollout_correction_and_rejection_mask(
            old_log_prob=old,
            rollout_log_prob=rollout,
            response_mask=mask,
            rollout_is=config.rollout_is,
            rollout_is_threshold=config.rollout_is_threshold,
            rollout_rs=config.rollout_rejection,
            rollout_rs_threshold=config.rollout_rejection_threshold,
        )
        meter.mean("off_policy/rejected", 1.0 - kept.sum() / mask.sum(), mask.sum())
        return (weights.batch["rollout_is_weights"] if weights is not None else None), kept


class LanguageModelObjective:
    """SFT: −log π of the given answer's tokens, averaged over all answer tokens of the update."""

    def __call__(self, logprobs: Tensor, entropy: Tensor, batch: DataProto, totals: BatchTotals, meter: Meter) -> Tensor:
        mask = batch.batch["loss_mask"]
        loss: Tensor = -(logprobs * mask).sum() / max(totals.tokens, 1) * totals.world_size
        meter.add("loss/lm", loss.detach() / totals.world_size)
        return loss
