"""`rl.evaluation.Answerer` by Hugging Face's own generate, in this process: the backend that needs neither Ray nor vLLM.

Greedy, with the prompts, banned tokens, stop tokens, pixel limits and length limits of the vLLM sampler, so that both give
the same boxes. Prompts of one length are answered together, which needs no padding: a row's positions are what they would
be alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
)

from data.sample import Sample
from rl.config import ModelConfig, Recipe
from rl.layout import stack_vision
from rl.prompting import EncodedPrompt, PromptEncoder
from rl.records import Rollout, RolloutFailure, Sampling

BATCH_TOKENS = 16384  # prompt and answer tokens decoded together
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Outcome = Rollout | RolloutFailure


class HfRollouts:
    """One model. `max_model_len` bounds prompt and answer together, as it does vLLM's."""

    def __init__(self, model: ModelConfig, dtype: str, max_model_len: int, batch_tokens: int = BATCH_TOKENS) -> None:
        self.encoder = PromptEncoder.of(model)
        self.max_model_len, self.batch_tokens = max_model_len, batch_tokens
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model: PreTrainedModel = AutoModelForImageTextToText.from_pretrained(
            model.path, dtype=DTYPES[dtype], attn_implementation=model.attention
        ).to(self.device)
        self.model.eval()
        # The folder's own would fill in whatever a request leaves open: sampling, penalties.
        self.model.generation_config = GenerationConfig()

    def generate(self, samples: Sequence[Sample], sampling: Sampling) -> list[list[Outcome]]:
        """`sampling.n` times the greedy answer of every sample, or its failure. Raises ValueError for a temperature."""
        if sampling.temperature != 0.0:
            raise ValueError(f"this backend answers greedily; temperature {sampling.temperature} needs backend=vllm")
        outcomes: dict[int, Outcome] = {}
        by_length: dict[int, list[int]] = defaultdict(list)
        room = self.max_model_len - sampling.max_tokens
        for place, sample in enumerate(samples):
            try:
                by_length[self._checked_length(sample, room)].append(place)
            except ValueError as error:
                outcomes[place] = RolloutFailure(sample.id, str(error))
        for length, places in sorted(by_length.items()):
            size = max(1, self.batch_tokens // (length + sampling.max_tokens))
            for start in range(0, len(places), size):
                batch = places[start : start + size]
                answers = self._answer([samples[place] for place in batch], sampling.max_tokens)
                outcomes.update(zip(batch, answers, strict=True))
        return [[outcomes[place]] * sampling.n for place in range(len(samples))]

    def _checked_length(self, sample: Sample, room: int) -> int:
        length = self.encoder.prompt_length(sample)
        if length > room:
            raise ValueError(f"the prompt has {length} tokens; max_model_len minus max_tokens leaves {room}")
        return length

    def _answer(self, samples: Sequence[Sample], max_tokens: int) -> list[Outcome]:
        """Answers of samples whose prompts have one length; one whose images do not decode fails alone."""
        encoded: list[EncodedPrompt | RolloutFailure] = []
        for sample in samples:
            try:
                encoded.append(self.encoder.encode(sample, keep=False))
            except ValueError as error:
                encoded.append(RolloutFailure(sample.id, str(error)))
        prompts = [prompt for prompt in encoded if isinstance(prompt, EncodedPrompt)]
        answers = iter(self._decode(prompts, max_tokens) if prompts else ())
        return [
            prompt if isinstance(prompt, RolloutFailure) else self._rollout(sample, prompt, *next(answers))
            for sample, prompt in zip(samples, encoded, strict=True)
        ]

    def _decode(self, prompts: Sequence[EncodedPrompt], max_tokens: int) -> list[tuple[list[int], list[float]]]:
        """(tokens, logprobs) of every prompt's greedy answer, up to and with the token that ends it."""
        settings = GenerationConfig(
            do_sample=False,
            max_new_tokens=max_tokens,
            eos_token_id=list(self.encoder.eos_token_ids),
            pad_token_id=self.encoder.eos_token_ids[0],
            suppress_tokens=list(self.encoder.banned_token_ids),
        )
        taken = _TakenLogprobs()
        with torch.inference_mode():
            whole_BL = cast(Any, self.model).generate(
                **self._inputs(prompts), generation_config=settings, logits_processor=LogitsProcessorList([taken])
            )
        answers_BR = whole_BL[:, len(prompts[0].input_ids) :]
        logprobs_BR = taken.finish(answers_BR[:, -1])
        answers = []
        for tokens, logprobs in zip(answers_BR.tolist(), logprobs_BR.tolist(), strict=True):
            ended = next((at + 1 for at, id in enumerate(tokens) if id in self.encoder.eos_token_ids), len(tokens))
            answers.append((tokens[:ended], logprobs[:ended]))
        return answers

    def _inputs(self, prompts: Sequence[EncodedPrompt]) -> dict[str, Tensor]:
        input_ids_BP = torch.stack([prompt.input_ids for prompt in prompts])
        inputs = {"input_ids": input_ids_BP, "attention_mask": torch.ones_like(input_ids_BP), **stack_vision(prompts)}
        # Families with plain positions take no token types.
        if hasattr(self.model.model, "get_rope_index"):
            inputs["mm_token_type_ids"] = torch.stack([prompt.mm_token_type_ids for prompt in prompts])
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        return {name: value.to(self.device) for name, value in inputs.items()}

    def _rollout(self, sample: Sample, prompt: EncodedPrompt, tokens: list[int], logprobs: list[float]) -> Rollout:
        ended = tokens[-1] in self.encoder.eos_token_ids
        return Rollout(
            prompt_id=sample.id,
            tokens=tuple(tokens),
            logprobs=tuple(logprobs),
            text=self.encoder.decode(tokens),
            finish_reason="stop" if ended else "length",
            policy_version=0,
            prompt_tokens=len(prompt.input_ids),
        )


class _TakenLogprobs(LogitsProcessor):  # type: ignore[misc]
    """Notes the logprob of every token that is taken, one step late: generate would keep the logits of all steps."""

    def __init__(self) -> None:
        self._taken: list[Tensor] = []
        self._last_BV: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self._last_BV is not None:
            self._note(input_ids[:, -1])
        self._last_BV = scores.float().log_softmax(-1)
        return scores

    def _note(self, tokens_B: Tensor) -> None:
        assert self._last_BV is not None
        self._taken.append(self._last_BV.gather(1, tokens_B[:, None])[:, 0])

    def finish(self, last_tokens_B: Tensor) -> Tensor:
        """[B, R] for the R steps that were taken."""
        self._note(last_tokens_B)
        return torch.stack(self._taken, dim=1)


@contextmanager
def open_hf(recipe: Recipe, model: ModelConfig, max_images: int) -> Iterator[HfRollouts]:
    """The backend `hf` of rl.evaluate. A prompt of any number of images is welcome."""
    yield HfRollouts(model, recipe.rollout.dtype, recipe.rollout.max_model_len)
