"""The streaming sampler on real vLLM: groups go on over new weights, and every token is of the version it names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText

from data.sample import Sample
from rewards.config import RewardConfig
from rl.config import AlgorithmConfig, GrpoConfig, LearnerConfig, ModelConfig, OptimizerConfig
from rl.engines.base import Rendezvous
from rl.learner import Learner
from rl.loop import Roles, hand_over
from rl.loop_async import AsyncGrpoLoop
from rl.prompt_ledger import PromptLedger
from rl.protocols import GroupRequest, Published, SampledGroup
from rl.records import Rollout, RolloutFailure, Sampling, WeightsReceipt
from tests.rl.sampler_case import (
    adapted,
    config_of,
    matrices,
    perturbed,
    rollouts_of,
    sampler_config,
)
from tests.rl.stock_forward import answer_logits

from rl.sampler_stream import StreamingSampler  # isort: skip  (sampler_case sets vLLM's environment)
from rl.engine_thread import EngineThread  # isort: skip
from tests.rl.local_roles import LocalLearner, LocalRewards, LocalRollouts  # isort: skip

SAMPLING = Sampling(n=3, temperature=1.0, top_p=1.0, max_tokens=12, seed=3)
GREEDY = replace(SAMPLING, n=1, temperature=0.0)
BOUND = 1e-4


@pytest.fixture(scope="module")
def engine(tiny_model_dir: Path) -> Iterator[StreamingSampler]:
    set_num_threads = torch.set_num_threads  # vLLM's CPU worker replaces it for the whole process
    built = StreamingSampler(sampler_config(tiny_model_dir, max_lora_rank=4))
    try:
        yield built
    finally:
        built.close()
        torch.set_num_threads = set_num_threads


@pytest.fixture(scope="module")
def base(tiny_model_dir: Path) -> nn.Module:
    return AutoModelForImageTextToText.from_pretrained(tiny_model_dir, dtype=torch.float32).eval()


@pytest.fixture
def sampler(engine: StreamingSampler, base: nn.Module) -> StreamingSampler:
    """The one engine of this module, back at the base weights."""
    engine.load_weights(base.state_dict().items(), version=0)
    return engine


def submit(sampler: StreamingSampler, samples: list[Sample], sampling: Sampling = SAMPLING, first: int = 0) -> None:
    for ticket, sample in enumerate(samples, first):
        sampler.submit(GroupRequest(ticket, sample, sampling))


def steps(sampler: StreamingSampler, count: int) -> list[SampledGroup]:
    return [group for _ in range(count) for group in sampler.advance()]


def drained(sampler: StreamingSampler) -> dict[int, SampledGroup]:
    found: dict[int, SampledGroup] = {}
    while sampler.busy:
        found |= {group.ticket: group for group in sampler.advance()}
    return found


def mismatch_by_version(models: dict[int, nn.Module], sampler: StreamingSampler, sample: Sample, rollout: Rollout) -> float:
    """max |Δ logprob| of the tokens, each against a Hugging Face forward of the version it names."""
    worst = 0.0
    for version in set(rollout.token_versions):
        logits = answer_logits(models[version], sampler.encoder, sample, rollout.tokens)
        logits[:, list(sampler.encoder.banned_token_ids)] = -torch.inf
        expected = logits.log_softmax(-1).gather(1, torch.tensor(rollout.tokens)[:, None])[:, 0]
        mine = torch.tensor(rollout.token_versions) == version
        worst = max(worst, float((expected - torch.tensor(rollout.logprobs))[mine].abs().max()))
    return worst


def test_groups_go_on_over_two_updates_and_every_token_is_of_the_version_it_names(
    sampler: StreamingSampler, base: nn.Module, tiny_samples: list[Sample]
) -> None:
    models = {0: base, 1: perturbed(base, seed=1), 2: perturbed(base, seed=2)}
    submit(sampler, tiny_samples)
    early = steps(sampler, 4)
    for version in (1, 2):
        receipt = sampler.load_weights(models[version].state_dict().items(), version)
        assert receipt.version == sampler.version == version
        early += steps(sampler, 3)
    groups = {group.ticket: group for group in early} | drained(sampler)
    assert sorted(groups) == [0, 1, 2, 3]
    seen = set()
    for ticket, group in groups.items():
        for rollout in rollouts_of([group.answers]):
            assert mismatch_by_version(models, sampler, tiny_samples[ticket], rollout) <= BOUND
            seen.add(tuple(sorted(set(rollout.token_versions))))
    assert (0, 1, 2) in seen, "no answer went on over both updates"


def test_the_first_version_is_that_of_the_first_token_not_of_the_request(
    sampler: StreamingSampler, base: nn.Module, tiny_samples: list[Sample]
) -> None:
    submit(sampler, tiny_samples[:1])
    sampler.load_weights(perturbed(base).state_dict().items(), version=1)
    for rollout in rollouts_of([drained(sampler)[0].answers]):
        assert (rollout.policy_version, rollout.switches) == (1, ())


def test_without_an_update_a_stream_is_the_batch(sampler: StreamingSampler, tiny_samples: list[Sample]) -> None:
    """The same seeds draw the same tokens, though the groups join the engine one after the other."""
    batch = sampler.generate(tiny_samples, SAMPLING)
    groups = {}
    for ticket, sample in enumerate(tiny_samples):
        submit(sampler, [sample], first=ticket)
        groups |= {group.ticket: group for group in steps(sampler, 2)}
    groups |= drained(sampler)
    assert [[answer.tokens for answer in rollouts_of([groups[ticket].answers])] for ticket in range(4)] == [
        [answer.tokens for answer in rollouts_of([group])] for group in batch
    ]


def test_an_adapter_takes_over_between_two_tokens(
    sampler: StreamingSampler, tiny_model_dir: Path, tiny_samples: list[Sample]
) -> None:
    adapters = {version: adapted(tiny_model_dir, seed=version) for version in (1, 2)}
    sampler.load_adapter(matrices(adapters[1]).items(), config_of(adapters[1]), 1)
    submit(sampler, tiny_samples[:2])
    steps(sampler, 4)
    sampler.load_adapter(matrices(adapters[2]).items(), config_of(adapters[2]), 2)
    groups = drained(sampler)
    assert groups
    seen = set()
    for ticket, group in groups.items():
        for rollout in rollouts_of([group.answers]):
            assert mismatch_by_version(dict(adapters), sampler, tiny_samples[ticket], rollout) <= BOUND
            seen |= set(rollout.token_versions)
    assert seen == {1, 2}


def test_validation_runs_beside_the_stream_with_one_version(sampler: StreamingSampler, tiny_samples: list[Sample]) -> None:
    alone = sampler.generate(tiny_samples, GREEDY)
    submit(sampler, tiny_samples)
    early = steps(sampler, 2)
    beside = sampler.generate(tiny_samples, replace(GREEDY, n=2))
    assert [[answer.tokens for answer in rollouts_of([group])] for group in beside] == [
        [answer.tokens for answer in rollouts_of([group])] * 2 for group in alone
    ]
    assert sorted([group.ticket for group in early] + list(drained(sampler))) == [0, 1, 2, 3]


def test_a_stream_takes_nothing_from_what_was_validated_before(
    sampler: StreamingSampler, tiny_samples: list[Sample]
) -> None:
    sampler.generate(tiny_samples, GREEDY)
    before = sampler.counts
    submit(sampler, tiny_samples)
    drained(sampler)
    assert (sampler.counts - before).encoded_images == 2 * len(tiny_samples)


def test_a_prompt_that_cannot_be_sampled_fails_alone(sampler: StreamingSampler, tiny_samples: list[Sample]) -> None:
    good, other = tiny_samples[0], tiny_samples[1]
    torn = replace(other, images=(replace(other.images[0], encoded=b"no image"), *other.images[1:]))
    submit(sampler, [good, torn])
    groups = drained(sampler)
    assert len(rollouts_of([groups[0].answers])) == 3
    assert len(groups[1].answers) == 3 and all(isinstance(answer, RolloutFailure) for answer in groups[1].answers)


def test_a_step_that_fails_is_found_out_one_by_one(
    sampler: StreamingSampler, tiny_samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(sampler, tiny_samples[:2])
    steps(sampler, 1)
    engine = sampler._engine.llm_engine
    whole = engine.step

    def broken() -> None:
        monkeypatch.setattr(engine, "step", whole)
        raise RuntimeError("out of something")

    errors = sampler.counts.engine_errors
    monkeypatch.setattr(engine, "step", broken)
    groups = drained(sampler)
    assert sampler.counts.engine_errors == errors + 1
    again = sampler.generate(tiny_samples[:2], SAMPLING)
    assert [groups[ticket].answers for ticket in (0, 1)] == [tuple(group) for group in again]


def test_a_thread_loads_while_groups_are_under_way(
    sampler: StreamingSampler, base: nn.Module, tiny_samples: list[Sample]
) -> None:
    moved = perturbed(base, seed=4)
    thread = EngineThread()
    thread.drive(sampler)
    try:
        for ticket in range(12):
            thread.call(sampler.submit, GroupRequest(ticket, tiny_samples[ticket % 4], replace(SAMPLING, seed=ticket)))
        groups = thread.collect()
        thread.call(sampler.load_weights, moved.state_dict().items(), 1)
        while len(groups) < 12:
            groups += thread.collect()
    finally:
        end(thread)
    assert thread.busy_seconds > 0
    models = {0: base, 1: moved}
    for group in groups:
        for rollout in rollouts_of([group.answers]):
            assert mismatch_by_version(models, sampler, tiny_samples[group.ticket % 4], rollout) <= BOUND


class EndedError(Exception):
    """What ends a thread of a test."""


def end(thread: EngineThread) -> None:
    """Wait until nothing of it touches the module's engine any more."""

    def stop() -> None:
        raise EndedError

    thread.post(stop)
    thread._thread.join()


class LocalStream(LocalRollouts):
    """`rl.protocols.StreamingRollouts` of one engine in a thread."""

    def __init__(self, sampler: StreamingSampler) -> None:
        super().__init__(sampler)
        self.stream, self.thread = sampler, EngineThread()
        self.thread.drive(sampler)

    def generate(self, samples: Sequence[Sample], sampling: Sampling) -> list[list[Rollout | RolloutFailure]]:
        return self.thread.call(super().generate, samples, sampling)

    def load(self, published: Published) -> list[WeightsReceipt]:
        return self.thread.call(super().load, published)

    def submit(self, requests: Sequence[GroupRequest]) -> None:
        for request in requests:
            self.thread.post(self.stream.submit, request)

    def collect(self, timeout_s: float) -> list[SampledGroup]:
        return self.thread.collect()

    def busy_seconds(self) -> float:
        return self.thread.busy_seconds


def test_the_loop_learns_from_a_stream_and_agrees_with_its_sampler_where_they_share_a_policy(
    sampler: StreamingSampler, tiny_model_dir: Path, tiny_samples: list[Sample]
) -> None:
    algorithm = AlgorithmConfig(rollout_is="token")
    model, config = ModelConfig(path=str(tiny_model_dir)), LearnerConfig(dtype="float32", tokens_per_micro_batch=600)
    learner = Learner(model, config, OptimizerConfig(lr=1e-3), sampler.encoder, Rendezvous(), temperature=1.0)
    stream, trained = LocalStream(sampler), LocalLearner(learner, algorithm)
    with LocalRewards(RewardConfig(name="tests.integration.user_rewards:letters")) as rewards:
        loop = AsyncGrpoLoop(
            Roles(stream, rewards, trained, None),
            PromptLedger(tiny_samples, seed=0),
            sampler.encoder.completion,
            GrpoConfig(steps=3, prompts_per_step=4, prompts_per_update=4, num_generations=3, max_staleness=1),
            algorithm,
            Sampling(3, 1.0, 1.0, 16, seed=1),
            mismatch_bound=BOUND,
        )
        try:
            hand_over(trained, stream, 0)
            reports = [loop.step(step).metrics for step in range(3)]
        finally:
            end(stream.thread)
            loop.shutdown()
            learner.close()
    assert sampler.version == 3 and not sampler.busy
    assert reports[0]["staleness/max"] == 0
    assert max(report["staleness/max"] for report in reports) == 1
    assert 0 < max(report.get("mismatch/max", 0.0) for report in reports) <= BOUND
    assert all(report["grad_norm"] > 0 for report in reports)
