"""Time of the rollouts: prefill (bound by compute), decode (bound by reading weights and keys), validation's share."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rl.config import RolloutConfig
from rl.plan.operations import decode_operations, head_numel, prefill_operations
from rl.plan.roofline import COLLECTIVE_S, TOKEN_STEP_S, Cost, Phase, longest, phase, tflop
from rl.plan.shapes import ModelShape
from rl.plan.sharding import COMPUTE_BYTES
from rl.plan.situation import Situation


@dataclass(frozen=True, slots=True)
class Decoding:
    """A sampler's token steps: `steps` with `batch` sequences at once, then `tail` with the few longest alone."""

    requests: int
    batch: int
    steps: float
    tail: float


def rollout(at: Situation) -> tuple[Phase, ...]:
    """A step's answers: prompts and their answers are dealt to the samplers in turn."""
    prompts = math.ceil(at.groups / at.recipe.rollout.actors)
    reward = phase("reward", Cost(0.0, "host"), "rules on text, on CPU workers: milliseconds, taken as none")
    return (_prefill(at, prompts), _decode(at, prompts * at.answers), reward)


def validation(at: Situation) -> Phase:
    """Held-out answers before the first step, every `validation.every` and after the last, as a share of a step."""
    config, samples = at.recipe.validation, at.validation_samples
    between = (at.steps - 1) // config.every if config.every else 0
    passes = between + 2 + (2 if config.sampled else 0)
    prompts = math.ceil(samples / at.recipe.rollout.actors)
    prefill, decode = _prefill(at, prompts), _decode(at, prompts)
    each = prefill.seconds + decode.seconds
    bound = max(prefill, decode, key=lambda part: part.seconds).bound
    how = f"{passes} × {samples} answers, {each:.3g} s each time, over {at.steps} steps"
    return phase("validation", Cost(passes * each / max(1, at.steps), bound), how)


def _prefill(at: Situation, prompts: int) -> Phase:
    parallel = at.recipe.rollout.tensor_parallel
    operations = prompts * prefill_operations(at.shape, at.group)
    cost = at.machine.compute(operations / parallel)
    how = f"{prompts} prompts of {at.workload.prompt_tokens:.0f} tokens a sampler, once each: {tflop(operations)}"
    return phase("prefill", cost, how if parallel == 1 else f"{how} / {parallel} GPUs")


def _decode(at: Situation, requests: int) -> Phase:
    decoding = decoding_of(at, requests)
    full, alone = token_step(at, decoding.batch), token_step(at, 1)
    cost = Cost(decoding.steps * full.seconds + decoding.tail * alone.seconds, full.bound)
    how = (
        f"{decoding.requests} answers of {at.workload.answer_tokens:.0f} tokens, {decoding.batch} at once "
        f"({decoding.requests / decoding.batch:.1f} waves): {decoding.steps:.0f} token steps of {full.seconds * 1e3:.3g} ms"
        f", tail {decoding.tail:.0f} of {alone.seconds * 1e3:.3g} ms"
    )
    return phase("decode", cost, how)


def decoding_of(at: Situation, requests: int) -> Decoding:
    """A sampler keeps as many sequences going as its cache and max_num_seqs allow, a new one for each that ends."""
    mean = at.workload.answer_tokens
    batch = max(1, min(requests, at.recipe.rollout.max_num_seqs, at.kv.sequences))
    longest_answer = min(at.workload.answer_tokens_max, at.recipe.plan.longest_answer * mean)
    return Decoding(requests, batch, requests * mean / batch, max(0.0, longest_answer - mean))


def token_step(at: Situation, batch: int) -> Cost:
    """One token of each of `batch` sequences: the weights are read once, every sequence's keys and values as well."""
    parallel, context = at.recipe.rollout.tensor_parallel, at.workload.prompt_tokens + at.workload.answer_tokens / 2
    weights = decoder_bytes(at.shape, at.recipe.rollout) / parallel
    reading = at.machine.memory(weights + batch * context * at.kv.bytes_per_token)
    computing = at.machine.compute(batch * decode_operations(at.shape, context) / parallel)
    binding = longest(reading, computing)
    return Cost(binding.seconds + TOKEN_STEP_S + _all_reduces(at, batch), binding.bound)


def decoder_bytes(shape: ModelShape, config: RolloutConfig) -> int:
    """What a token step reads: the decoder and the head, whole. An adapter is little beside them."""
    decoder = sum(block.count * (block.numel - block.numel_adapter) for block in shape.of_kind("language"))
    return COMPUTE_BYTES[config.dtype] * (decoder + head_numel(shape))


def _all_reduces(at: Situation, batch: int) -> float:
    """Two a layer over the tensor-parallel GPUs of a sampler."""
    parallel, language = at.recipe.rollout.tensor_parallel, at.shape.language
    if parallel == 1:
        return 0.0
    activations = batch * language.hidden * COMPUTE_BYTES[at.recipe.rollout.dtype]
    return 2 * language.layers * (COLLECTIVE_S + at.machine.link(2 * (parallel - 1) / parallel * activations).seconds)
