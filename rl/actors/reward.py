"""RewardActor and its group: verifiers on CPU, each with killable child processes behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cluster.group import ActorGroup
from cluster.placement import Slot
from data.sample import Sample
from rewards.config import RewardConfig
from rewards.pool import RewardPool
from rewards.score import Completion, RewardFailure, Score
from rl.trace import traced


@traced("score")
class RewardActor:
    """A RewardPool in a process of its own."""

    def __init__(self, config: RewardConfig) -> None:
        self.pool = RewardPool(config)

    def score(self, requests: Sequence[tuple[Sample, Completion]]) -> list[Score | RewardFailure]:
        return self.pool.score(requests)


class RewardGroup:
    """`rl.protocols.Rewards` over one actor."""

    def __init__(self, slots: Sequence[Slot], config: RewardConfig, env: Mapping[str, str], timeout_s: float) -> None:
        kwargs = [{"config": config} for _ in slots]
        self.group = ActorGroup.start("reward", RewardActor, slots, kwargs_each=kwargs, env_vars=env, timeout_s=timeout_s)

    def score(self, requests: Sequence[tuple[Sample, Completion]]) -> list[Score | RewardFailure]:
        cut = -(-len(requests) // len(self.group))
        shares = [(list(requests[rank * cut : (rank + 1) * cut]),) for rank in range(len(self.group))]
        return [verdict for share in self.group.call_each("score", shares) for verdict in share]

    def shutdown(self) -> None:
        self.group.shutdown()
