"""Reads an answer's attention off a forward, layer by layer, without ever building an attention map.

    q, k of one layer ─► rows that predict the answer: softmax(q_R·k / √d) [H, R, L] ─► mean over heads ─► two vectors [L]
           └───────────► the layer's own output by SDPA or FlashAttention, as without us

What is kept is 2 × layers × L floats. At most ROWS_AT_ONCE rows of one layer exist at a time.

Shape suffixes: M layers, H heads, R answer rows, L tokens, D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rl.attention_hook import text_config

IMPLEMENTATION = "sightline_answer_rows"
ROWS_AT_ONCE = 64

# (layer, attention of the watched rows averaged over heads [R, L]); called once a layer.
Visit = Callable[[int, Tensor], None]


@dataclass(frozen=True)
class AnswerAttention:
    """Attention of one answer to the L tokens of its sequence, averaged over heads, on the CPU in fp32.

    `mean_ML` averages the rows that predict the answer's tokens; `first_ML` is the row that predicts the first of them.
    `rows_R` are those rows' positions. Every row of both sums to 1.
    """

    rows_R: Tensor
    mean_ML: Tensor
    first_ML: Tensor


class _Collector:
    """Takes one layer after the other and keeps two vectors of each."""

    def __init__(self) -> None:
        self.mean: dict[int, Tensor] = {}
        self.first: dict[int, Tensor] = {}

    def __call__(self, layer: int, attention_RL: Tensor) -> None:
        assert layer not in self.mean, f"layer {layer} ran twice in one forward"
        self.mean[layer] = attention_RL.mean(0).cpu()
        self.first[layer] = attention_RL[0].cpu()


def answer_attention(model: PreTrainedModel, rows_R: Tensor, forward: Callable[[], object]) -> AnswerAttention:
    """The attention that `forward`, one forward of a batch of one through `model`, pays in the rows `rows_R`."""
    collector = _Collector()
    with torch.no_grad(), watched_attention(model, rows_R, collector):
        forward()
    layers = range(len(collector.mean))
    mean_ML = torch.stack([collector.mean[layer] for layer in layers])
    return AnswerAttention(rows_R.cpu(), mean_ML, torch.stack([collector.first[layer] for layer in layers]))


@contextmanager
def watched_attention(model: PreTrainedModel, rows_R: Tensor, visit: Visit) -> Iterator[None]:
    """While it lasts, every layer of the language model shows `visit` the attention of its rows `rows_R`.

    The vision tower is left alone; outputs are those of the implementation the model has (SDPA for an eager one).
    """
    config = text_config(model)
    before: str = config._attn_implementation
    inner = ALL_ATTENTION_FUNCTIONS[before if before != "eager" else "sdpa"]

    def watched(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        assert isinstance(module.layer_idx, int)
        scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
        attention_RL = [
            row_attention(query, key, rows, scaling, attention_mask).mean(0) for rows in rows_R.split(ROWS_AT_ONCE)
        ]
        visit(module.layer_idx, torch.cat(attention_RL))
        config._attn_implementation = before  # FlashAttention loads its kernel by this name
        output: tuple[Tensor, Tensor | None] = inner(module, query, key, value, attention_mask, **kwargs)
        config._attn_implementation = IMPLEMENTATION
        return output

    AttentionInterface.register(IMPLEMENTATION, watched)
    AttentionMaskInterface.register(IMPLEMENTATION, ALL_MASK_ATTENTION_FUNCTIONS[before])
    config._attn_implementation = IMPLEMENTATION
    try:
        yield
    finally:
        config._attn_implementation = before


def row_attention(query: Tensor, key: Tensor, rows_R: Tensor, scaling: float, mask: Tensor | None) -> Tensor:
    """Attention probabilities [H, R, L] in fp32 of the rows `rows_R` of a batch of one.

    `query` [1, H, L, D]; `key` [1, K, L, D] with K dividing H (grouped heads). `mask` [1, 1 or H, L, L] is bool (True: seen)
    or added to the scores; without one a row sees the positions up to its own.
    """
    assert query.shape[0] == 1, "one sequence at a time"
    rows_R = rows_R.to(query.device)
    heads, groups, length = query.shape[1], key.shape[1], key.shape[2]
    query_KGRD = query[0, :, rows_R].float().unflatten(0, (groups, heads // groups))
    scores_HRL = (query_KGRD @ key[0, :, None].float().transpose(-1, -2)).flatten(0, 1) * scaling
    if mask is None:
        seen = torch.arange(length, device=query.device) <= rows_R[:, None]
        scores_HRL = scores_HRL.masked_fill(~seen, -torch.inf)
    elif mask.dtype == torch.bool:
        scores_HRL = scores_HRL.masked_fill(~mask[0, :, rows_R, :length], -torch.inf)
    else:
        scores_HRL = scores_HRL + mask[0, :, rows_R, :length].float()
    return scores_HRL.softmax(-1)
