"""Group advantages, by verl's estimators, from the rewards of a batch of groups.

GRPO: A_i = (r_i − mean r) / (std r + 1e-6) within a group (std unbiased); Dr. GRPO leaves the division out; RLOO compares
with the mean of the others. The advantage of an answer is the advantage of each of its tokens.
"""

from __future__ import annotations

import inspect

import numpy as np
from torch import Tensor
from verl.protocol import DataProto
from verl.trainer.ppo.core_algos import get_adv_estimator_fn

from rl.config import AlgorithmConfig


def group_advantages(batch: DataProto, config: AlgorithmConfig) -> Tensor:
    """Advantages [N, G, R] of `batch.rewards` [N, G]; zero where an answer does not exist."""
    mask_NGR = batch.batch["response_mask"]
    groups, answers, length = mask_NGR.shape
    exists = mask_NGR.sum(-1).flatten() > 0
    mask = mask_NGR.reshape(groups * answers, length)[exists]
    token_rewards = mask.new_zeros(mask.shape)
    token_rewards[:, 0] = batch.batch["rewards"].flatten()[exists]
    estimator = get_adv_estimator_fn(config.advantage)
    options = {"norm_adv_by_std_in_grpo": config.normalize_by_std}
    accepted = inspect.signature(estimator).parameters
    index = np.repeat(np.arange(groups), answers)[exists.numpy()]
    values, _ = estimator(
        token_level_rewards=token_rewards,
        response_mask=mask,
        index=index,
        **{key: value for key, value in options.items() if key in accepted},
    )
    whole = mask_NGR.new_zeros(groups * answers, length)
    whole[exists] = values
    return whole.reshape(groups, answers, length)
