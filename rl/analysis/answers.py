"""The answers whose attention is read, and the stock Hugging Face forward that reads a prompt with its answer.

    own     the model's greedy answer, without image placeholders, as the sampler would give it
    true    what a perfect answer to the sample looks like

The token that ends the turn is no part of either.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, GenerationConfig, PreTrainedModel

from data.prompts import focus_response
from data.sample import Sample
from rl.analysis.stream import AnswerAttention, answer_attention
from rl.prompting import EncodedPrompt, PromptEncoder


class EmptyAnswerError(ValueError):
    """An answer without a token: no position of the sequence predicts it."""


@dataclass(frozen=True)
class Reader:
    """A model and its encoder, on one device. `max_tokens` bounds the model's own answers."""

    model: PreTrainedModel
    encoder: PromptEncoder
    max_tokens: int

    @classmethod
    def load(cls, folder: str, encoder: PromptEncoder, dtype: torch.dtype, attention: str, max_tokens: int) -> Reader:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, attn_implementation=attention)
        return cls(model.to(device).eval(), encoder, max_tokens)

    @property
    def layers(self) -> int:
        """Layers of the language model."""
        return int(self.model.config.get_text_config().num_hidden_layers)

    def own_answer(self, sample: Sample) -> list[int]:
        """The greedy answer's tokens."""
        encoded = self.encoder.encode(sample)
        greedy = GenerationConfig(
            do_sample=False,
            max_new_tokens=self.max_tokens,
            eos_token_id=list(self.encoder.eos_token_ids),
            pad_token_id=self.encoder.eos_token_ids[0],
            suppress_tokens=list(self.encoder.banned_token_ids) or None,
        )
        inputs = self._inputs(encoded, [])
        whole = self.model.generate(**inputs, attention_mask=torch.ones_like(inputs["input_ids"]), generation_config=greedy)
        tokens: list[int] = whole[0, len(encoded.input_ids) :].tolist()
        return self._without_end(sample, tokens)

    def true_answer(self, sample: Sample) -> list[int]:
        """The tokens of the true box, in the frame and the words of the family."""
        text = focus_response(sample, self.encoder.family, self.encoder.limits)
        return self._without_end(sample, self.encoder.answer_tokens(text))

    def _without_end(self, sample: Sample, tokens: list[int]) -> list[int]:
        kept = tokens[:-1] if tokens and tokens[-1] in self.encoder.eos_token_ids else tokens
        if not kept:
            raise EmptyAnswerError(f"sample {sample.id}: the answer is empty")
        return kept

    def attention(self, sample: Sample, answer: list[int]) -> AnswerAttention:
        """Teacher-forced: the attention of the positions that predict the tokens of `answer`."""
        encoded = self.encoder.encode(sample)
        inputs = self._inputs(encoded, answer)
        first = len(encoded.input_ids) - 1
        rows = torch.arange(first, first + len(answer))
        # One sequence without padding is causal: no mask is given, so none of L × L is made.
        return answer_attention(self.model, rows, lambda: self.model.model(**inputs, use_cache=False))

    def _inputs(self, encoded: EncodedPrompt, answer: list[int]) -> dict[str, Tensor]:
        """A batch of one for the stock model: the prompt and, after it, `answer`."""
        tokens = torch.tensor(answer, dtype=torch.long)
        inputs = {
            "input_ids": torch.cat([encoded.input_ids, tokens])[None],
            "mm_token_type_ids": torch.cat([encoded.mm_token_type_ids, torch.zeros_like(tokens)])[None],
            "pixel_values": encoded.pixel_values,
            "image_grid_thw": encoded.image_grid_thw,
        }
        return {name: value.to(self.model.device) for name, value in inputs.items() if value is not None}


ANSWERS = {"own": Reader.own_answer, "true": Reader.true_answer}
