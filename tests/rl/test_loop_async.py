"""The asynchronous loop over plain roles: its bound, what it carries, drops and saves, and how the background fails."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence

import pytest
import torch

from data.box import Frame
from data.sample import Sample
from rewards.score import Completion, RewardFailure, Score
from rl.config import AlgorithmConfig, GrpoConfig
from rl.loop import GrpoLoop, NothingToLearnError, Roles, StepReport
from rl.loop_async import AsyncGrpoLoop
from rl.prompt_ledger import PromptLedger
from rl.protocols import GroupRequest, Published, SampledGroup
from rl.records import Rollout, Sampling, WeightsReceipt
from tests.rl.test_batch import sample
from tests.rl.test_loop import NumberReward, RecordingLearner, ScriptedRollouts

P = 4
LATE_S = 0.04


class ScriptedStream(ScriptedRollouts):
    """A stream that ends groups at once, those with tickets in `slow` a moment after as many loads as it says there."""

    def __init__(self, slow: dict[int, int] | None = None, broken: set[tuple[str, int]] = frozenset()) -> None:  # type: ignore[assignment]
        super().__init__(broken)
        self.slow = slow or {}
        self.ends_at: dict[int, float] = {}
        self.under_way: dict[int, tuple[GroupRequest, list[int]]] = {}
        self.submitted: list[GroupRequest] = []
        self.error: Exception | None = None
        self._changed = threading.Condition()

    def submit(self, requests: Sequence[GroupRequest]) -> None:
        with self._changed:
            self.submitted += requests
            self.under_way |= {request.ticket: (request, [self.version]) for request in requests}
            self._changed.notify_all()

    def collect(self, timeout_s: float) -> list[SampledGroup]:
        with self._changed:
            self._changed.wait_for(lambda: self._done() or self.error, min(timeout_s, LATE_S / 4))
            if self.error is not None:
                raise self.error
            return [self._end(*self.under_way.pop(ticket)) for ticket in self._done()]

    def _done(self) -> list[int]:
        now = time.monotonic()
        return [
            ticket for ticket in self.under_way if self.slow.get(ticket, 0) <= 0 and now >= self.ends_at.get(ticket, now)
        ]

    def _end(self, request: GroupRequest, versions: list[int]) -> SampledGroup:
        """One token a version."""
        answers = []
        for number in range(request.sampling.n):
            answer = self._answer(request.sample.id, number)
            if isinstance(answer, Rollout):
                tokens = (5,) * len(versions)
                switches = tuple(enumerate(versions))[1:]
                answer = Rollout(
                    answer.prompt_id, tokens, (-1.0,) * len(tokens), answer.text, "stop", versions[0], 10, switches
                )
            answers.append(answer)
        return SampledGroup(request.ticket, tuple(answers))

    def load(self, published: Published) -> list[WeightsReceipt]:
        with self._changed:
            for ticket, (_, versions) in self.under_way.items():
                versions.append(published.version)
                if self.slow.get(ticket, 0):
                    self.slow[ticket] -= 1
                    self.ends_at[ticket] = time.monotonic() + LATE_S
            receipts = super().load(published)
            self._changed.notify_all()
            return receipts

    def busy_seconds(self) -> float:
        return 0.0

    def fail(self, error: Exception) -> None:
        with self._changed:
            self.error = error
            self._changed.notify_all()


def ledger(size: int = 40) -> PromptLedger:
    return PromptLedger([sample(n) for n in range(size)], seed=1, shuffle=False)


def loop_of(
    stream: ScriptedStream,
    max_staleness: int,
    steps: int = 10,
    prompts: PromptLedger | None = None,
    learner: RecordingLearner | None = None,
    rewards: NumberReward | None = None,
    algorithm: AlgorithmConfig | None = None,
    drop_stale: bool = False,
) -> AsyncGrpoLoop:
    learner = learner or RecordingLearner()
    return AsyncGrpoLoop(
        Roles(stream, rewards or NumberReward(), learner, None),
        prompts or ledger(),
        lambda s, text: Completion(text, Frame.thousandths()),
        GrpoConfig(
            steps=steps,
            prompts_per_step=P,
            prompts_per_update=P,
            num_generations=3,
            max_staleness=max_staleness,
            drop_stale=drop_stale,
        ),
        algorithm or AlgorithmConfig(rollout_is="token"),
        Sampling(3, 1.0, 1.0, 8, seed=5),
        mismatch_bound=1e-3,
    )


def run(loop: AsyncGrpoLoop, steps: int, first: int = 0) -> list[StepReport]:
    try:
        return [loop.step(step) for step in range(first, first + steps)]
    finally:
        loop.shutdown()


class SlowToAsk(ScriptedStream):
    """Each question takes it a second of a clock that nothing else moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def submit(self, requests: Sequence[GroupRequest]) -> None:
        self.now += 1.0
        super().submit(requests)

    def busy_seconds(self) -> float:
        self.now += 1.0
        return self.now / 2


def test_a_steps_time_is_that_of_all_it_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = SlowToAsk(monkeypatch)
    reports = run(loop_of(stream, 1, steps=3), 3)
    assert sum(report.metrics["time/step"] for report in reports) == stream.now > 0


def learnt(learner: RecordingLearner) -> list[list[str]]:
    return [[s.id for s in batch.non_tensor_batch["sample"]] for batch in learner.batches]


def test_a_bound_of_nought_learns_what_the_synchronous_loop_learns() -> None:
    learner, plain = RecordingLearner(), RecordingLearner()
    run(loop_of(ScriptedStream(), 0, learner=learner), 3)
    other = loop_of(ScriptedStream(), 0)
    synchronous = GrpoLoop(
        Roles(ScriptedRollouts(), NumberReward(), plain, None),
        ledger(),
        other.complete,
        other.grpo,
        other.algorithm,
        other.sampling,
        other.mismatch_bound,
    )
    for step in range(3):
        synchronous.step(step)
    assert learnt(learner) == learnt(plain)
    for mine, theirs in zip(learner.batches, plain.batches, strict=True):
        assert torch.equal(mine.batch["rewards"], theirs.batch["rewards"])
        assert torch.equal(mine.batch["current_mask"], mine.batch["response_mask"])


@pytest.mark.parametrize("bound", [1, 2, 3])
def test_the_samplers_are_ahead_by_the_bound_and_end_with_the_stage(bound: int) -> None:
    stream = ScriptedStream()
    loop = loop_of(stream, bound, steps=6)
    begun = []
    try:
        for step in range(6):
            loop.step(step)
            begun.append(len(stream.submitted))
    finally:
        loop.shutdown()
    assert begun == [P * min(6, 2 + step + bound) for step in range(6)]
    assert loop.stream.outstanding == 0
    assert len({request.ticket for request in stream.submitted}) == 6 * P


@pytest.mark.parametrize("bound", [1, 2])
def test_no_token_is_older_than_the_bound_however_slow_some_groups_are(bound: int) -> None:
    """Every third group lives on over as many updates as it may."""
    learner = RecordingLearner()
    stream = ScriptedStream(slow={ticket: 1 + ticket % bound for ticket in range(0, 100, 3)})
    reports = run(loop_of(stream, bound, learner=learner, steps=8), 8)
    assert [len(batch) for batch in learner.batches] == [P] * 8
    assert max(report.metrics["staleness/max"] for report in reports) == bound
    assert sum(report.metrics["rollout/carried"] for report in reports) > 0
    assert all(report.metrics["groups/stale"] == 0 for report in reports)
    assert Counter(prompt for batch in learnt(learner) for prompt in batch) == {f"s{n}": 1 for n in range(8 * P)}


def test_the_present_policys_tokens_are_told_from_older_ones() -> None:
    """Group 0 has a token of version 0 and one of version 1 when version 1 learns."""
    learner = RecordingLearner()
    reports = run(loop_of(ScriptedStream(slow={0: 1}), 1, learner=learner), 2)
    (row,) = [row for row, s in enumerate(learner.batches[1].non_tensor_batch["sample"]) if s.id == "s0"]
    batch = learner.batches[1].batch
    assert batch["response_mask"][row, 0].tolist() == [1.0, 1.0]
    assert batch["current_mask"][row, 0].tolist() == [0.0, 1.0]
    tokens = 3 * (2 + 3)  # the others' one token is of version 0
    assert reports[1].metrics["staleness/mean"] == pytest.approx((3 * 1 + 3 * 3 * 1) / tokens)
    assert reports[1].metrics["staleness/current_tokens"] == pytest.approx(3 / tokens)
    assert reports[1].metrics["rollout/carried"] == 3


def test_too_old_groups_are_dropped_and_their_prompts_sampled_again() -> None:
    learner = RecordingLearner()
    stream = ScriptedStream(slow={1: 3})
    reports = run(loop_of(stream, 1, learner=learner, drop_stale=True, steps=8), 8)
    assert sum(report.metrics["groups/stale"] for report in reports) == 1
    assert max(report.metrics["staleness/max"] for report in reports) == 1
    assert [request.sample.id for request in stream.submitted].count("s1") == 2
    assert [len(batch) for batch in learner.batches] == [P] * 8
    assert Counter(prompt for batch in learnt(learner) for prompt in batch)["s1"] == 1


def test_every_prompt_is_learnt_once_over_a_stop_and_a_resumption() -> None:
    """Saved after step 3, killed after step 4 with groups under way; the resumed run learns the rest of the epoch."""
    size, steps = 40, 10
    first = RecordingLearner()
    loop = loop_of(ScriptedStream(slow={1: 1, 7: 2, 10: 1}), 2, steps, ledger(size), first)
    try:
        for step in range(3):
            loop.step(step)
        saved = loop.prompts.state_dict()
        loop.step(3)
    finally:
        loop.shutdown()
    assert saved["unsettled"], "nothing was under way"
    second = RecordingLearner()
    prompts = ledger(size)
    prompts.load_state_dict(saved)
    stream = ScriptedStream()
    resumed = loop_of(stream, 2, steps, prompts, second)
    resumed.version = stream.version = 3
    run(resumed, steps - 3, first=3)
    once = learnt(first)[:3] + learnt(second)
    assert Counter(prompt for batch in once for prompt in batch) == {f"s{n}": 1 for n in range(size)}
    assert "unsettled" not in prompts.state_dict()


def test_a_synchronous_run_goes_on_from_an_asynchronous_ones_prompts() -> None:
    prompts = ledger()
    lent = prompts.lend(6)
    prompts.settle(lent[1])
    state = prompts.state_dict()
    other = ledger()
    other.load_state_dict(state)
    assert [s.id for s in other.take(7)] == ["s0", "s2", "s3", "s4", "s5", "s6", "s7"]


def test_lost_answers_are_counted_in_the_step_that_learns_of_them() -> None:
    stream = ScriptedStream(broken={("s1", 2)})
    reports = run(loop_of(stream, 1, rewards=NumberReward(hopeless={"0"}), steps=3), 3)
    assert sum(report.metrics["rollout/failures"] for report in reports) == 1
    assert sum(report.metrics["reward/failures"] for report in reports) == 3 * P
    assert sum((report.failures for report in reports), Counter())["rollout: the image is torn"] == 1
    assert reports[0].metrics["groups/dropped"] == 1  # s1 is left with answer 1 alone


def test_dynamic_sampling_takes_further_groups_from_the_stream() -> None:
    learner = RecordingLearner()
    algorithm = AlgorithmConfig(dynamic_sampling=True, rollout_is="token")
    rewards = NumberReward(flat={"s0", "s5"})
    reports = run(loop_of(ScriptedStream(), 1, learner=learner, rewards=rewards, algorithm=algorithm, steps=4), 4)
    assert [len(batch) for batch in learner.batches] == [P] * 4
    assert sum(report.metrics["groups/without_spread"] for report in reports) == 2
    assert max(report.metrics["staleness/max"] for report in reports) <= 1


def test_a_dead_sampler_ends_the_step_with_its_message() -> None:
    stream = ScriptedStream(slow=dict.fromkeys(range(100), 9))
    loop = loop_of(stream, 1)
    threading.Timer(0.2, stream.fail, [RuntimeError("rollout rank 1 failed: its process died")]).start()
    try:
        with pytest.raises(RuntimeError, match="its process died"):
            loop.step(0)
    finally:
        loop.shutdown()


class RaisingReward:
    def score(self, requests: Sequence[tuple[Sample, Completion]]) -> list[Score | RewardFailure]:
        raise OSError("the judge's pipe is broken")


def test_a_reward_pool_that_breaks_ends_the_step_with_its_message() -> None:
    loop = loop_of(ScriptedStream(), 1, rewards=RaisingReward())  # type: ignore[arg-type]
    try:
        with pytest.raises(OSError, match="pipe is broken"):
            loop.step(0)
    finally:
        loop.shutdown()


def test_a_step_without_any_group_says_why() -> None:
    loop = loop_of(ScriptedStream(), 1, rewards=NumberReward(hopeless={"0", "1", "2"}))
    try:
        with pytest.raises(NothingToLearnError, match="ZeroDivisionError"):
            loop.step(0)
    finally:
        loop.shutdown()


def test_shutdown_leaves_no_thread_though_groups_are_under_way() -> None:
    before = set(threading.enumerate())
    stream = ScriptedStream(slow=dict.fromkeys(range(P, 100), 9))
    loop = loop_of(stream, 1)
    loop.step(0)
    assert stream.under_way and set(threading.enumerate()) - before
    loop.shutdown()
    assert set(threading.enumerate()) == before
