"""The loop's roles in this process, without Ray: real vLLM, a real learner, a real reward pool."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from verl.protocol import DataProto

from data.sample import Sample
from rewards.pool import RewardPool
from rl.batch import balance, gather_rows
from rl.config import AlgorithmConfig
from rl.learner import Learner
from rl.objectives import GrpoObjective
from rl.protocols import Published
from rl.records import Rollout, RolloutFailure, Sampling, WeightsReceipt
from rl.sampler import VllmSampler
from rl.weights import Checksummed


class LocalLearner:
    """`rl.protocols.PolicyLearner` of one rank."""

    def __init__(self, learner: Learner, algorithm: AlgorithmConfig) -> None:
        self.learner, self.objective = learner, GrpoObjective(algorithm)

    def _share(self, batch: DataProto):  # type: ignore[no-untyped-def]
        return balance(batch, 1, self.learner.config.tokens_per_micro_batch, self.learner.config.layout)[0]

    def logprobs(self, batch: DataProto) -> Tensor:
        share = self._share(batch)
        return gather_rows([share], [self.learner.logprobs(share)], len(batch))

    def begin(self, batch: DataProto) -> list[Tensor]:
        return list(self.logprobs(batch))

    def update(self, batch: DataProto, lr: float) -> dict[str, float]:
        share = self._share(batch)
        handles = share.batch.non_tensor_batch.pop("reference", None)
        reference = None if handles is None else lambda: torch.stack(list(handles))
        return self.learner.update(share, self.objective, lr, reference)

    def publish(self, version: int) -> Published:
        self.passing = Checksummed((name, tensor.clone()) for name, tensor in self.learner.full_weights())
        return Published(version, self.passing)

    def confirm(self, published: Published) -> str:
        return self.passing.checksum

    def save(self, directory: Path) -> None:
        self.learner.save(directory)

    def load(self, directory: Path) -> None:
        self.learner.load(directory)


class LocalRollouts:
    """`rl.protocols.Rollouts` of one engine."""

    def __init__(self, sampler: VllmSampler) -> None:
        self.sampler = sampler

    def generate(self, samples: Sequence[Sample], sampling: Sampling) -> list[list[Rollout | RolloutFailure]]:
        return self.sampler.generate(samples, sampling)

    def load(self, published: Published) -> list[WeightsReceipt]:
        return [self.sampler.load_weights(published.tensors, published.version)]


LocalRewards = RewardPool  # already has the shape of `rl.protocols.Rewards`
