"""The answers whose attention is read, and the stock Hugging Face forward that reads a prompt with its answer.

    own      the model's greedy answer, as the evaluation's backend `hf` gives it
    truth    what a perfect answer to a FOCUS sample looks like: the true box in its tags, without a thought

The token that ends the turn is no part of either.
"""

from __future__ import annotations

import torch
from torch import Tensor

from data.prompts import focus_response
from data.sample import Sample
from rl.analysis.stream import AnswerAttention, answer_attention
from rl.hf_rollouts import HfRollouts
from rl.prompting import EncodedPrompt
from rl.records import RolloutFailure, Sampling


class UnansweredError(ValueError):
    """A sample whose answer has no token to read attention from; the message is the reason."""


class Reader:
    """One model that answers and is read. `max_tokens` bounds its own answers."""

    def __init__(self, rollouts: HfRollouts, max_tokens: int) -> None:
        self.rollouts, self.encoder = rollouts, rollouts.encoder
        self.greedy = Sampling(n=1, temperature=0.0, top_p=1.0, max_tokens=max_tokens)

    @property
    def layers(self) -> int:
        """Layers of the language model."""
        return int(self.rollouts.model.config.get_text_config().num_hidden_layers)

    def own_answer(self, sample: Sample) -> list[int]:
        """The greedy answer's tokens. Raises UnansweredError."""
        ((answer,),) = self.rollouts.generate([sample], self.greedy)
        if isinstance(answer, RolloutFailure):
            raise UnansweredError(answer.reason)
        return self._without_end(list(answer.tokens))

    def true_answer(self, sample: Sample) -> list[int]:
        """The tokens of the true box, in the frame and the words of the family."""
        text = focus_response(sample, self.encoder.family, self.encoder.limits)
        return self._without_end(self.encoder.answer_tokens(text))

    def _without_end(self, tokens: list[int]) -> list[int]:
        kept = tokens[:-1] if tokens[-1] in self.encoder.eos_token_ids else tokens
        if not kept:
            raise UnansweredError("the answer is empty")
        return kept

    def attention(self, encoded: EncodedPrompt, answer: list[int]) -> AnswerAttention:
        """Teacher-forced: the attention of the positions that predict the tokens of `answer`."""
        first = len(encoded.input_ids) - 1
        rows = torch.arange(first, first + len(answer))
        inputs, model = self._inputs(encoded, answer), self.rollouts.model
        # One sequence without padding is causal: no mask is given, so none of L × L is made.
        return answer_attention(model, rows, lambda: model.model(**inputs, use_cache=False))

    def _inputs(self, encoded: EncodedPrompt, answer: list[int]) -> dict[str, Tensor]:
        """A batch of one for the stock model: the prompt and, after it, `answer`."""
        tokens = torch.tensor(answer, dtype=torch.long)
        inputs = {"input_ids": torch.cat([encoded.input_ids, tokens])[None], **encoded.vision}
        if encoded.image_grid_thw is not None:  # what multi-axis rotary positions are computed from
            inputs["mm_token_type_ids"] = torch.cat([encoded.mm_token_type_ids, torch.zeros_like(tokens)])[None]
        if encoded.vision:
            inputs["pixel_values"] = inputs["pixel_values"].to(self.rollouts.model.dtype)
        return {name: value.to(self.rollouts.device) for name, value in inputs.items()}


ANSWERS = {"own": Reader.own_answer, "truth": Reader.true_answer}
