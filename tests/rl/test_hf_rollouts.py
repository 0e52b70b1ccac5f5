"""Answers by Hugging Face's generate: the plain forward's greedy tokens, vLLM's boxes, and failures that stay alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from data.sample import EncodedImage, Sample
from data.store import SampleStore
from rl.config import ModelConfig
from rl.demo import RECIPES
from rl.hf_rollouts import HfRollouts
from rl.layout import stack_vision
from rl.records import Rollout, RolloutFailure, Sampling
from rl.tiny_backbone import ARCHITECTURES, write
from tests.rl.focus_case import episode
from tests.rl.locus_case import write_locus
from tests.rl.sampler_case import rollouts_of, running_sampler, sampler_config

GREEDY = Sampling(1, 0.0, 1.0, max_tokens=12, seed=0)
EPISODES = [episode(1, "a"), episode(2, "b"), episode(2, "c"), episode(1, "d")]


def forward_logprobs(rollouts: HfRollouts, sample: Sample, tokens: Sequence[int]) -> Tensor:
    """[R, V] of one plain forward over prompt and answer, without a cache; banned tokens at −inf."""
    prompt = rollouts.encoder.encode(sample)
    input_ids = torch.cat([prompt.input_ids, torch.tensor(tokens)])[None]
    types = torch.cat([prompt.mm_token_type_ids, torch.zeros(len(tokens), dtype=torch.long)])[None]
    has_axes = hasattr(rollouts.model.model, "get_rope_index")
    with torch.no_grad():
        logits = rollouts.model(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            **stack_vision([prompt]),
            **({"mm_token_type_ids": types} if has_axes else {}),
        ).logits[0, len(prompt.input_ids) - 1 : -1]
    logits[:, list(rollouts.encoder.banned_token_ids)] = -torch.inf
    return logits.float().log_softmax(-1)


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_it_takes_the_likeliest_token_of_a_plain_forward(architecture: str, tmp_path: Path) -> None:
    write(tmp_path, seed=0, architecture=architecture)
    rollouts = HfRollouts(ModelConfig(path=str(tmp_path)), "float32", max_model_len=2048)
    answers = rollouts_of(rollouts.generate(EPISODES, GREEDY))
    assert [answer.prompt_id for answer in answers] == [sample.id for sample in EPISODES]
    for sample, answer in zip(EPISODES, answers, strict=True):
        expected = forward_logprobs(rollouts, sample, answer.tokens)
        taken = expected.gather(1, torch.tensor(answer.tokens)[:, None])[:, 0]
        assert answer.prompt_tokens == len(rollouts.encoder.encode(sample).input_ids)
        torch.testing.assert_close(taken, expected.max(-1).values, rtol=0, atol=1e-5)
        torch.testing.assert_close(torch.tensor(answer.logprobs), taken, rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def locus_tiny(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return SampleStore(write_locus(tmp_path_factory.mktemp("locus"), 12), "validation")[:]


@pytest.fixture(scope="module")
def trained() -> HfRollouts:
    return HfRollouts(ModelConfig(path=str(RECIPES / "tiny_model")), "float32", max_model_len=256)


def test_an_answer_ends_with_its_turn_or_at_max_tokens(trained: HfRollouts, locus_tiny: list[Sample]) -> None:
    whole = rollouts_of(trained.generate(locus_tiny, Sampling(1, 0.0, 1.0, max_tokens=40)))
    assert {answer.finish_reason for answer in whole} == {"stop"}
    assert all(answer.tokens[-1] in trained.encoder.eos_token_ids and "</answer>" in answer.text for answer in whole)
    cut = rollouts_of(trained.generate(locus_tiny, Sampling(1, 0.0, 1.0, max_tokens=5)))
    assert [answer.tokens for answer in cut] == [answer.tokens[:5] for answer in whole]
    assert {answer.finish_reason for answer in cut} == {"length"}


def test_one_that_ends_early_waits_for_the_others(
    trained: HfRollouts, locus_tiny: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token that some answers hold, made one that ends a turn: those stop there, the others go on to their own end."""
    whole = rollouts_of(trained.generate(locus_tiny, Sampling(1, 0.0, 1.0, max_tokens=40)))
    early = next(id for id in whole[0].tokens if not all(id in answer.tokens for answer in whole))
    monkeypatch.setattr(trained.encoder, "eos_token_ids", (*trained.encoder.eos_token_ids, early))
    ended = rollouts_of(trained.generate(locus_tiny, Sampling(1, 0.0, 1.0, max_tokens=40)))
    expected = [a.tokens[: a.tokens.index(early) + 1] if early in a.tokens else a.tokens for a in whole]
    assert [answer.tokens for answer in ended] == expected
    assert len({len(answer.tokens) for answer in ended}) > 1
    for answer, before in zip(ended, whole, strict=True):
        assert answer.finish_reason == "stop"
        assert answer.logprobs == pytest.approx(before.logprobs[: len(answer.tokens)], abs=1e-5)


def test_together_and_alone_samples_get_the_same_answers(trained: HfRollouts, locus_tiny: list[Sample]) -> None:
    alone = HfRollouts(ModelConfig(path=str(RECIPES / "tiny_model")), "float32", max_model_len=256, batch_tokens=1)
    together = rollouts_of(trained.generate(locus_tiny, GREEDY))
    assert [a.tokens for a in together] == [a.tokens for a in rollouts_of(alone.generate(locus_tiny, GREEDY))]


def test_vllm_gives_the_same_greedy_answers(trained: HfRollouts, locus_tiny: list[Sample]) -> None:
    sampling = Sampling(1, 0.0, 1.0, max_tokens=40, seed=0)
    ours = rollouts_of(trained.generate(locus_tiny, sampling))
    settings = sampler_config(RECIPES / "tiny_model", max_model_len=256, min_pixels=None, max_pixels=None)
    with running_sampler(settings) as sampler:
        theirs = rollouts_of(sampler.generate(locus_tiny, sampling))
    assert [answer.text for answer in ours] == [answer.text for answer in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert (a.tokens, a.finish_reason, a.prompt_tokens) == (b.tokens, b.finish_reason, b.prompt_tokens)
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


def test_a_sample_that_cannot_be_answered_fails_alone(trained: HfRollouts, locus_tiny: list[Sample]) -> None:
    good = locus_tiny[0]
    torn = EncodedImage(112, 112, encoded=(good.images[0].encoded or b"")[:200])
    broken = Sample("torn", "locus", (torn, good.images[1]), good.prompt, good.target)
    (first,), (lost,), (last,) = trained.generate([good, broken, good], GREEDY)
    assert isinstance(first, Rollout) and first == last
    assert isinstance(lost, RolloutFailure) and "cannot be decoded" in lost.reason
    short = HfRollouts(ModelConfig(path=str(RECIPES / "tiny_model")), "float32", max_model_len=40)
    ((too_long,),) = short.generate([good], GREEDY)
    assert isinstance(too_long, RolloutFailure) and "leaves 28" in too_long.reason


def test_a_temperature_is_refused(trained: HfRollouts) -> None:
    with pytest.raises(ValueError, match="needs backend=vllm"):
        trained.generate([], Sampling(1, 0.6, 0.95, 10))
