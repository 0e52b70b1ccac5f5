"""The sampler on real vLLM: agrees with a Hugging Face forward, before and after new weights; fails prompt by prompt."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText

from data.sample import EncodedImage, Sample, TextPart
from rl.records import RolloutFailure, Sampling
from rl.weights import checksum
from tests.rl.sampler_case import (
    largest_mismatch,
    perturbed,
    rollouts_of,
    running_sampler,
    sampler_config,
)
from tests.rl.stock_forward import answer_logits, forward_inputs
from tests.rl.sync_case import sending

from rl.sampler import PromptMismatchError, VllmSampler, WeightsError  # isort: skip  (sampler_case sets vLLM's environment)

SAMPLING = Sampling(n=4, temperature=1.0, top_p=1.0, max_tokens=12, seed=3)
GREEDY = replace(SAMPLING, n=1, temperature=0.0)
BOUND = 1e-4


@pytest.fixture(scope="module")
def engine(tiny_model_dir: Path) -> Iterator[VllmSampler]:
    with running_sampler(sampler_config(tiny_model_dir)) as sampler:
        yield sampler


@pytest.fixture(scope="module")
def base(tiny_model_dir: Path) -> nn.Module:
    return AutoModelForImageTextToText.from_pretrained(tiny_model_dir, dtype=torch.float32).eval()


@pytest.fixture
def sampler(engine: VllmSampler, base: nn.Module) -> VllmSampler:
    """The one engine of this module, back at the base weights."""
    engine.load_weights(base.state_dict().items(), version=0)
    return engine


# ── agreement with the learner's arithmetic ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_equal_a_hugging_face_forward(
    sampler: VllmSampler, base: nn.Module, tiny_samples: list[Sample], temperature: float
) -> None:
    groups = sampler.generate(tiny_samples, replace(SAMPLING, temperature=temperature))
    assert [len(group) for group in groups] == [4] * len(tiny_samples)
    assert len({rollout.tokens for rollout in rollouts_of(groups)}) == 4 * len(tiny_samples)
    assert largest_mismatch(base, sampler.encoder, tiny_samples, groups, temperature) <= BOUND


def test_greedy_takes_the_argmax_and_repeats_it_for_every_n(
    sampler: VllmSampler, base: nn.Module, tiny_samples: list[Sample]
) -> None:
    (group,) = sampler.generate(tiny_samples[:1], replace(GREEDY, n=3))
    first, *rest = rollouts_of([group])
    assert rest == [first, first]
    logits = answer_logits(base, sampler.encoder, tiny_samples[0], first.tokens)
    logits[:, list(sampler.encoder.banned_token_ids)] = -torch.inf
    assert tuple(logits.argmax(-1).tolist()) == first.tokens
    assert largest_mismatch(base, sampler.encoder, tiny_samples[:1], [group]) <= BOUND


def point_embeddings(model: nn.Module, sampler: VllmSampler, sample: Sample, tokens: list[str]) -> nn.Module:
    """A copy of the model in which these tokens' logits dwarf all others after the prompt (head and embedding are tied)."""
    moved = copy.deepcopy(model)
    prompt = sampler.encoder.encode(sample)
    with torch.no_grad():
        hidden = moved.model(**forward_inputs(prompt)).last_hidden_state[0, -1]
        ids = sampler.encoder.tokenizer.convert_tokens_to_ids(tokens)
        moved.lm_head.weight[ids] = 20 * hidden / hidden.norm()
    return moved


def test_banned_tokens_are_never_sampled_even_if_their_logits_dominate(
    sampler: VllmSampler, base: nn.Module, tiny_samples: list[Sample]
) -> None:
    """Image and video placeholders, whose embeddings no prompt uses: the images' own features stand in their place."""
    model = point_embeddings(base, sampler, tiny_samples[0], ["<|image_pad|>", "<|video_pad|>"])
    banned = set(sampler.encoder.banned_token_ids)
    assert int(answer_logits(model, sampler.encoder, tiny_samples[0], [0]).argmax()) in banned
    sampler.load_weights(model.state_dict().items(), version=1)
    for sampling in (SAMPLING, GREEDY):
        groups = sampler.generate(tiny_samples[:1], sampling)
        assert not banned & {token for rollout in rollouts_of(groups) for token in rollout.tokens}
        assert largest_mismatch(model, sampler.encoder, tiny_samples[:1], groups) <= BOUND


def test_the_end_token_belongs_to_the_answer_and_not_to_its_text(
    sampler: VllmSampler, base: nn.Module, tiny_samples: list[Sample]
) -> None:
    model = point_embeddings(base, sampler, tiny_samples[0], ["<|endoftext|>"])
    sampler.load_weights(model.state_dict().items(), version=1)
    ended = rollouts_of(sampler.generate(tiny_samples[:1], GREEDY))[0]
    assert ended.tokens == (sampler.encoder.tokenizer.convert_tokens_to_ids("<|endoftext|>"),)
    assert (ended.text, ended.finish_reason, len(ended.logprobs)) == ("", "stop", 1)
    sampler.load_weights(base.state_dict().items(), version=2)
    cut = rollouts_of(sampler.generate(tiny_samples[:1], GREEDY))[0]
    assert (len(cut.tokens), cut.finish_reason, cut.policy_version) == (12, "length", 2)


# ── draws ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_prompts_draws_depend_on_seed_and_prompt_alone(sampler: VllmSampler, tiny_samples: list[Sample]) -> None:
    together = sampler.generate(tiny_samples, SAMPLING)
    alone = [sampler.generate([sample], SAMPLING)[0] for sample in reversed(tiny_samples)]
    assert [[r.tokens for r in rollouts_of([group])] for group in together] == [
        [r.tokens for r in rollouts_of([group])] for group in reversed(alone)
    ]
    other = sampler.generate(tiny_samples, replace(SAMPLING, seed=4))
    assert not {r.tokens for r in rollouts_of(other)} & {r.tokens for r in rollouts_of(together)}


@pytest.mark.parametrize(
    ("change", "message"),
    [({"n": 0}, "n=0"), ({"temperature": -1.0}, "-1.0"), ({"temperature": 0.001}, "0.001"), ({"top_p": 0.0}, "0.0")],
)
def test_an_impossible_sampling_is_refused(
    sampler: VllmSampler, tiny_samples: list[Sample], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        sampler.generate(tiny_samples, replace(SAMPLING, **change))


# ── weights ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("part", ["", "visual"])
def test_new_weights_are_sampled_from_and_no_cache_survives_them(
    sampler: VllmSampler, base: nn.Module, tiny_samples: list[Sample], part: str
) -> None:
    """The same prompts and images before and after; with only the vision tower moved, only image embeddings are stale.

    One prompt is longer than a block of the prefix cache, and is seen to be answered from it before the new weights come.
    """
    long = replace(tiny_samples[0], id="long", prompt=(*tiny_samples[0].prompt, TextPart("word " * 30)))
    samples = [*tiny_samples, long]
    for _ in range(2):
        cached_before = sampler.counts.cached_prompt_tokens
        sampler.generate(samples, SAMPLING)
    assert sampler.counts.cached_prompt_tokens > cached_before
    model = perturbed(base, part)
    receipt = sampler.load_weights(model.state_dict().items(), version=7)
    assert (receipt.version, sampler.version) == (7, 7)
    assert receipt.checksum == checksum(model.state_dict().items())
    groups = sampler.generate(samples, SAMPLING)
    assert {rollout.policy_version for rollout in rollouts_of(groups)} == {7}
    assert largest_mismatch(model, sampler.encoder, samples, groups) <= BOUND
    assert largest_mismatch(base, sampler.encoder, samples, groups) > 10 * BOUND


def test_a_tied_head_is_completed_when_it_is_left_out(
    sampler: VllmSampler, base: nn.Module, tiny_samples: list[Sample]
) -> None:
    model = perturbed(base)
    names = [name for name, _ in model.named_parameters()]
    assert "lm_head.weight" not in names
    sampler.load_weights(model.named_parameters(), version=1)
    groups = sampler.generate(tiny_samples, SAMPLING)
    assert largest_mismatch(model, sampler.encoder, tiny_samples, groups) <= BOUND


def broken_streams(model: nn.Module) -> dict[str, Any]:
    tensors = list(model.state_dict().items())

    def cut_off() -> Iterator[tuple[str, torch.Tensor]]:
        yield from tensors[:30]
        raise ConnectionError("the learner went away")

    return {
        "the learner went away": cut_off(),
        "'language_model": tensors[:-5],
        "no module or parameter named 'foreign'": [*tensors, ("model.foreign.weight", torch.zeros(2))],
        "q_proj.weight": [(name, torch.zeros(3) if name.endswith("q_proj.weight") else tensor) for name, tensor in tensors],
    }


@pytest.mark.parametrize("reason", ["the learner went away", "'language_model", "named 'foreign'", "q_proj.weight"])
def test_weights_that_do_not_arrive_whole_are_refused_until_whole_ones_come(
    sampler: VllmSampler, base: nn.Module, tiny_samples: list[Sample], reason: str
) -> None:
    model = perturbed(base)
    (stream,) = [stream for cause, stream in broken_streams(model).items() if reason in cause]
    with pytest.raises(WeightsError, match=reason):
        sampler.load_weights(iter(stream), version=8)
    assert sampler.version == 0
    with pytest.raises(WeightsError, match="version 8"):
        sampler.generate(tiny_samples, SAMPLING)
    sampler.load_weights(model.state_dict().items(), version=9)
    groups = sampler.generate(tiny_samples, SAMPLING)
    assert largest_mismatch(model, sampler.encoder, tiny_samples, groups) <= BOUND


@pytest.mark.parametrize("medium", ["shared_memory", "gloo"])
def test_weights_that_arrive_in_buckets_smaller_than_a_layer(
    sampler: VllmSampler, base: nn.Module, tiny_samples: list[Sample], medium: str
) -> None:
    """vLLM reads a layer's tensors when the last of them is there: by then the buckets of the first ones are long past."""
    model = perturbed(base)
    with sending(model.state_dict().items(), version=3, medium=medium) as arrival:
        receipt = sampler.load_weights(arrival, version=3)
    assert receipt.checksum == checksum(model.state_dict().items())
    groups = sampler.generate(tiny_samples, SAMPLING)
    assert largest_mismatch(model, sampler.encoder, tiny_samples, groups) <= BOUND


def test_a_sampler_and_a_sender_learn_of_each_others_failure(
    sampler: VllmSampler, base: nn.Module, tiny_samples: list[Sample]
) -> None:
    foreign = [*base.state_dict().items(), ("model.foreign.weight", torch.zeros(2)), ("more", torch.zeros(1 << 20))]
    with (
        sending(foreign, version=3) as arrival,
        pytest.raises(WeightsError, match=r"after tensor 'model\.foreign\.weight'.*named 'foreign'"),
    ):
        sampler.load_weights(arrival, version=3)  # the sender ends, or this would not return
    with (
        sending(broken_streams(base)["the learner went away"], version=4) as arrival,
        pytest.raises(WeightsError, match=r"the learner at .* failed: ConnectionError: the learner went away"),
    ):
        sampler.load_weights(arrival, version=4)
    with pytest.raises(WeightsError, match="version 4"):
        sampler.generate(tiny_samples, SAMPLING)


# ── prompts that cannot be sampled ───────────────────────────────────────────────────────────────────────────────────


def truncated(image: EncodedImage) -> EncodedImage:
    assert image.encoded is not None
    return EncodedImage(image.width, image.height, encoded=image.encoded[: len(image.encoded) // 2])


def unsampleable(sample: Sample) -> dict[str, Sample]:
    words = TextPart("word " * 400)
    return {
        "cannot be decoded": replace(sample, images=(truncated(sample.images[0]), sample.images[1])),
        "max_model_len 256 minus max_tokens 12 leaves 244": replace(sample, prompt=(*sample.prompt, words)),
        "3 image placeholders for 2 images": replace(sample, prompt=(*sample.prompt, TextPart("<|image_pad|>"))),
    }


def test_a_bad_prompt_fails_alone_with_its_reason(sampler: VllmSampler, tiny_samples: list[Sample]) -> None:
    good = sampler.generate(tiny_samples, SAMPLING)
    for reason, bad in unsampleable(tiny_samples[1]).items():
        failures_before = sampler.counts.failures
        mixed = sampler.generate([tiny_samples[0], bad, *tiny_samples[2:]], SAMPLING)
        assert [rollout.tokens for rollout in rollouts_of([mixed[0], *mixed[2:]])] == [
            rollout.tokens for rollout in rollouts_of([good[0], *good[2:]])
        ]
        assert len(mixed[1]) == SAMPLING.n
        for failure in mixed[1]:
            assert isinstance(failure, RolloutFailure) and failure.prompt_id == "tiny-1"
            assert reason in failure.reason
        assert sampler.counts.failures == failures_before + SAMPLING.n


def test_an_engine_error_costs_only_the_prompt_that_causes_it(
    sampler: VllmSampler, tiny_samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault is injected where a kernel would raise: in the model runner, whenever the culprit's prompt is scheduled."""
    good = sampler.generate(tiny_samples, SAMPLING)
    culprit = sampler.encoder.input_ids(tiny_samples[2])
    runner = sampler._engine.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner
    execute = runner.execute_model

    def faulty(scheduled: Any, *args: Any, **kwargs: Any) -> Any:
        if any(request.prompt_token_ids == culprit for request in scheduled.scheduled_new_reqs):
            raise RuntimeError("device-side assert")
        return execute(scheduled, *args, **kwargs)

    monkeypatch.setattr(runner, "execute_model", faulty)
    errors_before = sampler.counts.engine_errors
    mixed = sampler.generate(tiny_samples, SAMPLING)
    for place, group in enumerate(mixed):
        if place == 2:
            assert {failure.reason for failure in group if isinstance(failure, RolloutFailure)} == {
                "vLLM failed: RuntimeError: device-side assert"
            }
        else:
            assert [rollout.tokens for rollout in rollouts_of([group])] == [r.tokens for r in rollouts_of([good[place]])]
    assert sampler.counts.engine_errors == errors_before + 2  # the batch, then the culprit alone
    monkeypatch.undo()
    assert [r.tokens for r in rollouts_of(sampler.generate(tiny_samples, SAMPLING))] == [r.tokens for r in rollouts_of(good)]


def test_prompts_that_differ_from_the_processors_stop_the_run(
    sampler: VllmSampler, tiny_samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler.encoder.processor.image_processor, "size", {"shortest_edge": 784, "longest_edge": 4 * 784})
    with pytest.raises(PromptMismatchError, match="tiny-3"):
        sampler.generate([tiny_samples[3]], SAMPLING)


def test_more_prompts_than_fit_into_one_step_need_no_second_try(
    sampler: VllmSampler, base: nn.Module, tiny_samples: list[Sample]
) -> None:
    sampling = replace(SAMPLING, n=32, max_tokens=2)
    batched = sum(sampler.encoder.prompt_length(sample) for sample in tiny_samples) * sampling.n
    assert batched > sampler._engine.llm_engine.vllm_config.scheduler_config.max_num_batched_tokens
    before = sampler.counts.engine_errors
    groups = sampler.generate(tiny_samples, sampling)
    assert sampler.counts.engine_errors == before
    assert largest_mismatch(base, sampler.encoder, tiny_samples, groups) <= BOUND


# ── the rest ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_counts_add_up(sampler: VllmSampler, tiny_samples: list[Sample]) -> None:
    before = sampler.counts
    rollouts = rollouts_of(sampler.generate(tiny_samples, SAMPLING))
    after = sampler.counts
    assert after.prompts - before.prompts == len(tiny_samples)
    assert after.prompt_tokens - before.prompt_tokens == sum(sampler.encoder.prompt_length(s) for s in tiny_samples)
    assert after.completion_tokens - before.completion_tokens == sum(len(rollout.tokens) for rollout in rollouts)
    assert after.failures == before.failures
    assert after.seconds > before.seconds


def test_a_groups_prompt_and_its_images_are_computed_once(sampler: VllmSampler, tiny_samples: list[Sample]) -> None:
    """But for what stands behind the prompt's last whole block of the cache: every other answer computes that again."""
    block = sampler._engine.llm_engine.vllm_config.cache_config.block_size
    samples = [replace(s, prompt=(*s.prompt, TextPart("word " * 30))) for s in tiny_samples]
    lengths = [sampler.encoder.prompt_length(sample) for sample in samples]
    assert all(block < length < 2 * block for length in lengths)
    before = sampler.counts
    sampler.generate(samples, SAMPLING)
    done = sampler.counts - before
    assert done.asked_prompt_tokens == SAMPLING.n * sum(lengths)
    computed = done.asked_prompt_tokens - done.cached_prompt_tokens
    assert computed == sum(length + (SAMPLING.n - 1) * (length - block) for length in lengths)
    assert (done.asked_images, done.encoded_images) == (SAMPLING.n * 2 * len(samples), 2 * len(samples))
    assert done.cache_hits["rollout/encoder_cache_hit"] == 1 - 1 / SAMPLING.n


def test_an_empty_batch_is_an_empty_answer(sampler: VllmSampler) -> None:
    assert sampler.generate([], SAMPLING) == []


def test_an_engine_without_adapters_says_so(sampler: VllmSampler) -> None:
    with pytest.raises(ValueError, match="max_lora_rank"):
        sampler.load_adapter([], {}, version=1)


def test_the_config_module_needs_neither_torch_nor_vllm() -> None:
    script = "import sys, rl.sampler_config; print(sorted({'torch', 'vllm', 'ray', 'transformers'} & set(sys.modules)))"
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"
