"""A round over samplers that stream: judged and begun on while others are sampled, and in the end the same groups."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from functools import partial

import pytest
from verl.protocol import DataProto

from data.box import Frame
from data.sample import Sample
from data.stream import PromptStream
from rewards.score import Completion, RewardFailure, Score
from rl.batch import fits_at_once
from rl.config import AlgorithmConfig, GrpoConfig
from rl.loop import GrpoLoop, Roles
from rl.protocols import GroupRequest, SampledGroup
from rl.records import Sampling
from rl.sampler_counts import SamplerCounts
from tests.rl.test_batch import sample
from tests.rl.test_loop import NumberReward, RecordingLearner, ScriptedRollouts

COUNT, WAIT_S = 6, 30.0


class Relay(ScriptedRollouts):
    """Two samplers that end groups in the order `order`, one a call; before the last one they wait for `released`."""

    def __init__(self, order: Sequence[int], released: threading.Event | None = None) -> None:
        super().__init__()
        self.order, self.released = list(order), released
        self.requests: dict[int, GroupRequest] = {}
        self.left: list[int] = []
        self.asked = self.patience = 0

    def submit(self, requests: Sequence[GroupRequest]) -> None:
        self.seeds.append(requests[0].sampling.seed)
        self.requests = {request.ticket: request for request in requests}
        self.left = [ticket for ticket in self.order if ticket in self.requests]
        self.asked += len(requests)

    def collect(self, timeout_s: float) -> list[SampledGroup]:
        if len(self.left) == 1 and self.released is not None and not self.released.wait(timeout_s):
            self.patience += 1
            assert self.patience * timeout_s < WAIT_S, "nobody released the last group"
            return []
        ticket = self.left.pop(0)
        sample, sampling = self.requests[ticket].sample, self.requests[ticket].sampling
        answers = tuple(self._answer(sample.id, number) for number in range(sampling.n))
        return [SampledGroup(ticket, answers, sampler=ticket % 2)]

    def busy_seconds(self) -> float:
        return 0.0

    def counts(self) -> SamplerCounts:
        """Of three completions a prompt of 100 tokens and 2 images, two take all but 10 tokens from the caches."""
        return SamplerCounts(
            asked_prompt_tokens=300 * self.asked,
            cached_prompt_tokens=180 * self.asked,
            asked_images=6 * self.asked,
            encoded_images=2 * self.asked,
        )


class Watched(RecordingLearner):
    """A reference that says on which groups it was begun, and `releases` the last group once it was begun on `enough`."""

    def __init__(self, released: threading.Event | None = None, enough: int = COUNT) -> None:
        super().__init__()
        self.begun: list[list[str]] = []
        self.released, self.enough = released, enough

    def begin(self, batch: DataProto) -> list[object]:
        self.begun.append([s.id for s in batch.non_tensor_batch["sample"]])
        if self.released is not None and sum(map(len, self.begun)) >= self.enough:
            self.released.set()
        return list(super().begin(batch))


class ReleasingReward(NumberReward):
    """Releases the last group once it has judged all others."""

    def __init__(self, released: threading.Event) -> None:
        super().__init__()
        self.released, self.judged = released, 0

    def score(self, requests: Sequence[tuple[Sample, Completion]]) -> list[Score | RewardFailure]:
        self.judged += len({sample.id for sample, _ in requests})
        if self.judged == COUNT - 1:
            self.released.set()
        return super().score(requests)


def loop_of(
    rollouts: ScriptedRollouts,
    rewards: NumberReward | None = None,
    learner: RecordingLearner | None = None,
    chunk: int | None = None,
    algorithm: AlgorithmConfig | None = None,
) -> GrpoLoop:
    learner = learner or RecordingLearner()
    fits = None if chunk is None else partial(fits_at_once, world_size=1, token_budget=chunk)
    return GrpoLoop(
        Roles(rollouts, rewards or NumberReward(), learner, learner, fits),
        PromptStream([sample(n) for n in range(40)], seed=1, shuffle=False),
        lambda s, text: Completion(text, Frame.thousandths()),
        GrpoConfig(steps=10, prompts_per_step=COUNT, prompts_per_update=COUNT, num_generations=3),
        algorithm or AlgorithmConfig(),
        Sampling(3, 1.0, 1.0, 8, seed=5),
        mismatch_bound=1e-3,
    )


def ids(batch: DataProto) -> list[str]:
    return [s.id for s in batch.non_tensor_batch["sample"]]


@pytest.mark.parametrize("order", [range(COUNT), reversed(range(COUNT)), [3, 0, 5, 1, 2, 4]])
def test_a_step_learns_the_same_whatever_ends_first(order: Sequence[int]) -> None:
    at_once, streamed = RecordingLearner(), RecordingLearner()
    loop_of(ScriptedRollouts(), learner=at_once).step(0)
    loop_of(Relay(list(order)), learner=streamed).step(0)
    (expected,), (found,) = at_once.batches, streamed.batches
    assert ids(found) == ids(expected) == [f"s{n}" for n in range(COUNT)]
    assert all(found.batch[name].equal(expected.batch[name]) for name in expected.batch.keys())
    handles = (batch.non_tensor_batch["reference"] for batch in (found, expected))
    assert all(handle.equal(other) for handle, other in zip(*handles, strict=True))


def test_groups_are_judged_while_another_is_sampled() -> None:
    released = threading.Event()
    rewards = ReleasingReward(released)
    loop_of(Relay(range(COUNT), released), rewards).step(0)
    assert rewards.judged == COUNT


def test_the_reference_begins_while_another_is_sampled() -> None:
    """A group is 10 + 3 × 2 tokens: two of them are a chunk, and group 5 ends when two are begun on."""
    released = threading.Event()
    learner = Watched(released, enough=2)
    loop_of(Relay([3, 0, 1, 2, 4, 5], released), learner=learner, chunk=32).step(0)
    assert sorted(learner.begun) == [["s0", "s2"], ["s3", "s1"], ["s4", "s5"]]
    (batch,) = learner.batches
    assert ids(batch) == [f"s{n}" for n in range(COUNT)]


def test_the_reference_is_not_begun_on_groups_that_nobody_learns_from() -> None:
    learner = Watched()
    algorithm = AlgorithmConfig(dynamic_sampling=True)
    rewards = NumberReward(flat={"s1", "s2"})
    rollouts = Relay(range(COUNT))
    report = loop_of(rollouts, rewards, learner, chunk=1, algorithm=algorithm).step(0)
    assert sorted(name for call in learner.begun for name in call) == ["s0", "s3", "s4", "s5", "s6", "s7"]
    assert ids(learner.batches[0]) == ["s0", "s3", "s4", "s5", "s6", "s7"]
    assert report.metrics["groups/without_spread"] == 2
    assert len(set(rollouts.seeds)) == len(rollouts.seeds) == 2


class ClockedRelay(Relay):
    """The n-th group of a round ends n² seconds after the one before, by a clock that nothing else moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(range(COUNT))
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def collect(self, timeout_s: float) -> list[SampledGroup]:
        self.now += float((COUNT - len(self.left)) ** 2)
        return super().collect(timeout_s)


def test_the_wait_for_the_slowest_counts_from_the_half_of_the_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """The third of six ends after 0 + 1 + 4 seconds, the sixth 9 + 16 + 25 later."""
    report = loop_of(ClockedRelay(monkeypatch)).step(0)
    assert report.metrics["throughput/slowest_wait_s"] == 50.0


def test_cache_hits_are_those_of_the_step() -> None:
    loop = loop_of(Relay(range(COUNT)))
    for step in range(2):
        metrics = loop.step(step).metrics
        assert metrics["rollout/prefix_cache_hit"] == pytest.approx(0.6)
        assert metrics["rollout/encoder_cache_hit"] == pytest.approx(2 / 3)


def test_samplers_that_answer_at_once_report_neither() -> None:
    metrics = loop_of(ScriptedRollouts()).step(0).metrics
    assert not {"throughput/slowest_wait_s", "rollout/prefix_cache_hit", "rollout/encoder_cache_hit"} & set(metrics)


class BrokenReward(NumberReward):
    def score(self, requests: Sequence[tuple[Sample, Completion]]) -> list[Score | RewardFailure]:
        raise ConnectionError("the verifier went away")


def test_what_goes_wrong_in_the_background_is_raised_by_the_step() -> None:
    with pytest.raises(ConnectionError, match="went away"):
        loop_of(Relay(range(COUNT)), BrokenReward()).step(0)


def test_shutdown_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    loop = loop_of(Relay(range(COUNT)))
    loop.step(0)
    (judging,) = set(threading.enumerate()) - before
    loop.shutdown()
    judging.join(WAIT_S)
    assert not judging.is_alive()
