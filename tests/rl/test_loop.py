"""The loop over plain roles: what it counts, what it drops, what it refuses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from verl.protocol import DataProto

from data.box import Frame
from data.sample import Sample
from data.stream import PromptStream
from rewards.score import Completion, RewardFailure, Score
from rl.config import AlgorithmConfig, GrpoConfig
from rl.loop import GrpoLoop, MismatchError, NothingToLearnError, Roles, SyncError
from rl.protocols import Published
from rl.records import Rollout, RolloutFailure, Sampling, WeightsReceipt
from tests.rl.test_batch import sample


class ScriptedRollouts:
    """Answers whose text is the answer's number; numbers in `broken` fail."""

    def __init__(self, broken: set[tuple[str, int]] = frozenset(), stale: bool = False) -> None:  # type: ignore[assignment]
        self.broken, self.stale = broken, stale
        self.seeds: list[int | None] = []
        self.version = 0

    def generate(self, samples: Sequence[Sample], sampling: Sampling) -> list[list[Rollout | RolloutFailure]]:
        self.seeds.append(sampling.seed)
        return [[self._answer(s.id, g) for g in range(sampling.n)] for s in samples]

    def _answer(self, prompt_id: str, number: int) -> Rollout | RolloutFailure:
        if (prompt_id, number) in self.broken:
            return RolloutFailure(prompt_id, "the image is torn")
        return Rollout(prompt_id, (5, 6), (-1.0, -2.0), str(number), "stop", self.version, 10)

    def load(self, published: Published) -> list[WeightsReceipt]:
        self.version = published.version
        return [WeightsReceipt(published.version, "other" if self.stale else "sum")]


class NumberReward:
    """The answer's number as its reward; the answers in `hopeless` cannot be judged."""

    def __init__(self, hopeless: set[str] = frozenset(), flat: set[str] = frozenset()) -> None:  # type: ignore[assignment]
        self.hopeless, self.flat = hopeless, flat

    def score(self, requests: Sequence[tuple[Sample, Completion]]) -> list[Score | RewardFailure]:
        return [self._one(sample, completion) for sample, completion in requests]

    def _one(self, sample: Sample, completion: Completion) -> Score | RewardFailure:
        if completion.text in self.hopeless:
            return RewardFailure("ZeroDivisionError: division by zero")
        return Score(1.0 if sample.id in self.flat else float(completion.text), {"iou": 0.5})


class RecordingLearner:
    """Agrees with the sampler up to `offset`, and keeps what it was given."""

    def __init__(self, offset: float = 0.0) -> None:
        self.offset = offset
        self.batches: list[DataProto] = []

    def logprobs(self, batch: DataProto) -> Tensor:
        return batch.batch["rollout_logprobs"] + self.offset * batch.batch["response_mask"]

    def begin(self, batch: DataProto) -> list[Tensor]:
        return list(self.logprobs(batch))

    def update(self, batch: DataProto, lr: float) -> dict[str, float]:
        self.batches.append(batch)
        return {"loss/policy": 0.0, "lr": lr}

    def publish(self, version: int) -> Published:
        return Published(version, ())

    def confirm(self, published: Published) -> str:
        return "sum"

    def save(self, directory: Path) -> None: ...

    def load(self, directory: Path) -> None: ...


def loop_of(
    rollouts: ScriptedRollouts | None = None,
    rewards: NumberReward | None = None,
    learner: RecordingLearner | None = None,
    algorithm: AlgorithmConfig | None = None,
    prompts_per_update: int = 4,
) -> GrpoLoop:
    learner = learner or RecordingLearner()
    algorithm = algorithm or AlgorithmConfig()
    return GrpoLoop(
        Roles(rollouts or ScriptedRollouts(), rewards or NumberReward(), learner, learner),
        PromptStream([sample(n) for n in range(40)], seed=1, shuffle=False),
        lambda s, text: Completion(text, Frame.thousandths()),
        GrpoConfig(steps=10, prompts_per_step=4, prompts_per_update=prompts_per_update, num_generations=3),
        algorithm,
        Sampling(3, 1.0, 1.0, 8, seed=5),
        mismatch_bound=1e-3,
    )


def test_a_failure_leaves_its_group_and_is_never_a_zero() -> None:
    learner = RecordingLearner()
    report = loop_of(ScriptedRollouts(broken={("s1", 2)}), NumberReward(hopeless={"0"}), learner).step(0)
    assert report.metrics["rollout/failures"] == 1
    assert report.metrics["reward/failures"] == 4
    assert report.metrics["groups/dropped"] == 1  # s1 is left with answer 1 alone
    (batch,) = learner.batches
    assert [s.id for s in batch.non_tensor_batch["sample"]] == ["s0", "s2", "s3"]
    assert batch.batch["rewards"].tolist() == [[1.0, 2.0]] * 3
    assert report.failures["rollout: the image is torn"] == 1
    assert report.metrics["reward/total"] == 1.5


def test_a_step_without_any_group_says_why() -> None:
    with pytest.raises(NothingToLearnError, match="ZeroDivisionError"):
        loop_of(rewards=NumberReward(hopeless={"0", "1", "2"})).step(0)


def test_the_gate_stops_before_anything_is_learnt() -> None:
    learner = RecordingLearner(offset=0.01)
    with pytest.raises(MismatchError, match=r"0\.01"):
        loop_of(learner=learner).step(0)
    assert learner.batches == []


def test_a_stale_sampler_is_an_error() -> None:
    with pytest.raises(SyncError, match="other"):
        loop_of(ScriptedRollouts(stale=True)).step(0)


def test_several_updates_a_step_are_measured_against_the_policy_that_sampled() -> None:
    learner = RecordingLearner()
    loop_of(learner=learner, prompts_per_update=2).step(0)
    assert [len(batch) for batch in learner.batches] == [2, 2]
    assert all("old_logprobs" in batch.batch.keys() for batch in learner.batches)


def test_with_groups_lost_the_later_updates_are_still_measured_against_the_policy_that_sampled() -> None:
    """Two of four groups are left: as many as an update takes, but there are two updates."""
    learner = RecordingLearner()
    lost = {(prompt, number) for prompt in ("s1", "s2") for number in (0, 1)}
    loop_of(ScriptedRollouts(broken=lost), learner=learner, prompts_per_update=2).step(0)
    assert [len(batch) for batch in learner.batches] == [1, 1]
    assert all("old_logprobs" in batch.batch.keys() for batch in learner.batches)


def test_dynamic_sampling_replaces_groups_that_teach_nothing() -> None:
    learner = RecordingLearner()
    rollouts = ScriptedRollouts()
    algorithm = AlgorithmConfig(dynamic_sampling=True)
    report = loop_of(rollouts, NumberReward(flat={"s0", "s3", "s4"}), learner, algorithm).step(0)
    assert [s.id for s in learner.batches[0].non_tensor_batch["sample"]] == ["s1", "s2", "s5", "s6"]
    assert report.metrics["groups/without_spread"] == 3
    assert len(set(rollouts.seeds)) == len(rollouts.seeds) == 3


def test_seeds_depend_on_the_step_alone() -> None:
    first, again = ScriptedRollouts(), ScriptedRollouts()
    loop = loop_of(first)
    for step in range(3):
        loop.step(step)
    resumed = loop_of(again)
    resumed.prompts.load_state_dict(replace_position(resumed.prompts, 8))
    resumed.step(2)
    assert first.seeds[2] == again.seeds[0]
    assert len(set(first.seeds)) == 3


def replace_position(stream: PromptStream, position: int):  # type: ignore[no-untyped-def]
    return {**stream.state_dict(), "position": position}


def test_rewards_of_unequal_answers_become_advantages_of_mean_zero() -> None:
    learner = RecordingLearner()
    loop_of(learner=learner).step(0)
    advantages = learner.batches[0].batch["advantages"][:, :, 0]
    assert torch.allclose(advantages.sum(-1), torch.zeros(4), atol=1e-6)


def test_overhead_is_the_share_of_a_step_that_neither_samples_nor_learns() -> None:
    first, second = (loop.step(step).metrics for loop in [loop_of()] for step in range(2))
    for metrics in (first, second):
        computing = metrics["time/rollout"] + metrics.get("time/gate", 0.0) + metrics["time/update"]
        assert metrics["throughput/overhead"] == pytest.approx(1 - computing / metrics["time/step"])
        assert 0 < metrics["throughput/overhead"] < 1
    assert "time/gate" in first
