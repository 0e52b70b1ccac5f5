"""Attention of groups that lie in one row, in two parts: a prompt by itself, then its answers. Never an L × L mask.

    row      [ prompt | answer | answer | … ][ prompt | answer | … ] … padding
    part 1   prompt × prompt             causal, without a mask: the kernel that needs none (flash on a GPU)
    part 2   answers × (prompt, answers) a bias [R, P + R] that all layers share: the prompt, and of the answers one's own

A group with one answer is one causal sequence. Answers so many that their bias would outgrow BIAS_ELEMENTS are cut into
several part 2s. `install` makes the language model of a Hugging Face model attend so where its arguments name `groups`;
without them its attention is what it was. Groups travel in the layers' keyword arguments, as rl/attention_hook.py's record.

Shape suffixes: H query heads, K key heads, L tokens of the row, D head dimension, P tokens of a prompt, R of its answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rl.attention_hook import Attention, text_config, under_its_name

PREFIX = "groups_"
BIAS_ELEMENTS = 1 << 24  # 32 MiB in bfloat16
ALIGNED = 8


@dataclass(frozen=True)
class GroupSpan:
    """A group's place in its row: `prompt` tokens from `first` on, then every answer's."""

    first: int
    prompt: int
    answers: tuple[int, ...]

    @property
    def end(self) -> int:
        return self.first + self.prompt + sum(self.answers)

    def blocks(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Runs of answers that attend together: (first token, their lengths)."""
        at, block = self.first + self.prompt, list[int]()
        for answer in self.answers:
            tokens = sum(block) + answer
            if block and tokens * (self.prompt + tokens) > BIAS_ELEMENTS:
                yield at, tuple(block)
                at, block = at + sum(block), []
            block.append(answer)
        yield at, tuple(block)


@dataclass(frozen=True)
class Groups:
    """All groups of one row, one after another from its beginning; what is left is padding."""

    spans: tuple[GroupSpan, ...]
    _biases: dict[tuple[Any, ...], Tensor] = field(default_factory=dict, repr=False, compare=False)

    @property
    def branches(self) -> bool:
        """Whether any prompt has several answers."""
        return any(len(span.answers) > 1 for span in self.spans)

    def bias(self, prompt: int, answers: tuple[int, ...], like: Tensor) -> Tensor:
        """[R, P + R], 0 where an answer token (row) sees a key (column) and −inf elsewhere; made once for all layers."""
        known = (prompt, answers, like.device, like.dtype)
        if known not in self._biases:
            self._biases[known] = _answers_bias(prompt, answers, like)
        return self._biases[known]


def _answers_bias(prompt: int, answers: tuple[int, ...], like: Tensor) -> Tensor:
    number_R = torch.cat([torch.full((length,), number, device=like.device) for number, length in enumerate(answers)])
    own = (number_R[:, None] == number_R).tril()
    width = prompt + len(number_R)
    # Rows begin at multiples of ALIGNED numbers: a bias that does not is copied by the kernel, for every layer.
    bias = like.new_zeros(len(number_R), -(-width // ALIGNED) * ALIGNED)[:, :width]
    bias[:, prompt:].masked_fill_(~own, -torch.inf)
    return bias


def attend(
    query: Tensor, key: Tensor, value: Tensor, groups: Groups, scaling: float | None = None, dropout: float = 0.0
) -> Tensor:
    """Queries [1, H, L, D], keys and values [1, K, L, D] → [1, L, H, D]; zeros on padding."""
    if groups.branches and query.shape[1] != key.shape[1]:
        # Under a bias no kernel shares key heads; repeated once for the row, both parts see the same tensor.
        key, value = (tensor.repeat_interleave(query.shape[1] // tensor.shape[1], 1) for tensor in (key, value))
    shared_heads = query.shape[1] != key.shape[1]

    def causal(tokens: slice) -> Tensor:
        q, k, v = (tensor[:, :, tokens] for tensor in (query, key, value))
        return scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scaling, dropout_p=dropout, enable_gqa=shared_heads
        )

    def branched(span: GroupSpan, first: int, answers: tuple[int, ...]) -> Tensor:
        own = slice(first, first + sum(answers))
        keys, values = (_prompt_and(tensor, span, own) for tensor in (key, value))
        bias = groups.bias(span.prompt, answers, query)
        return scaled_dot_product_attention(query[:, :, own], keys, values, attn_mask=bias, scale=scaling, dropout_p=dropout)

    parts = []
    for span in groups.spans:
        if len(span.answers) == 1:
            parts.append(causal(slice(span.first, span.end)))
            continue
        parts.append(causal(slice(span.first, span.first + span.prompt)))
        parts += [branched(span, first, answers) for first, answers in span.blocks()]
    if (padding := query[:, :, groups.spans[-1].end :]).shape[2]:
        parts.append(torch.zeros_like(padding))
    outputs = [part.transpose(1, 2) for part in parts]
    return outputs[0].contiguous() if len(outputs) == 1 else torch.cat(outputs, 1)


def _prompt_and(tensor: Tensor, span: GroupSpan, own: slice) -> Tensor:
    """Keys or values of a prompt and of some of its answers: where these come first, as they lie."""
    end = span.first + span.prompt
    if own.start == end:
        return tensor[:, :, span.first : own.stop]
    return torch.cat([tensor[:, :, span.first : end], tensor[:, :, own]], 2)


def install(model: PreTrainedModel) -> None:
    """Make the language model of `model` take `groups`. Before rl/attention_hook.py's install, which measures around it.

    Only the attention is registered, no mask under its name: order alone hides what a row without groups hides. Raises
    ValueError for a model with sliding windows, which are masks.
    """
    config = text_config(model)
    if "sliding_attention" in (vars(config).get("layer_types") or ()):
        raise ValueError(
            "the model's config has layers with a sliding window (use_sliding_window), which groups in one row do not have; "
            "set use_sliding_window to false in its config.json if prompts and answers fit into the window"
        )
    before = config._attn_implementation
    if PREFIX in before:
        return
    attention = under_its_name(cast(Attention, ALL_ATTENTION_FUNCTIONS[before]), before)
    AttentionInterface.register(PREFIX + before, _in_groups(attention))
    config._attn_implementation = PREFIX + before


def _in_groups(attention: Attention) -> Attention:
    def forward(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        groups: Groups | None = None,
        scaling: float | None = None,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        if groups is None:
            return attention(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)
        return attend(query, key, value, groups, scaling, dropout), None

    return forward
