"""Gets the attention mass on boxes out of a Hugging Face model whose attention output stays as it was.

    install(model)                                          once, after building (under LoRA: before or after)
    record = BoxRecord(targets, layers)                     one for each forward
    base.model(…, box_record=record)                        any class that hands keyword arguments down to its attention
    box_loss(record.mass(), targets, margin)                before or after the rest of the loss; then one backward

transformers calls attention by a name in the text config and looks it up in its AttentionInterface. `install` registers
a name there (and the same mask under it) that does what the model's own implementation does and, where a record came
along and wants the layer, measures queries and keys beside it. Only the language model's config gets the name; the
vision tower keeps its own. The record travels in the layers' keyword arguments, so that a checkpointed layer gets it
again when backward recomputes it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rl.attention_loss import BoxTargets
from rl.attention_mass import CHUNK_BYTES, Span, drop_causal, measure, with_gradient

PREFIX = "box_mass_"
Attention = Callable[..., tuple[Tensor, Tensor | None]]


class BoxRecord:
    """The masses that one forward leaves behind, layer by layer.

    A checkpointed layer comes twice: in the forward, and in backward's recomputation, which must run the same operations
    for autograd but counts for nothing. Mass and log-sum-exp are kept from the first time, so the second costs no scores.
    """

    def __init__(self, targets: BoxTargets, layers: tuple[int, ...], chunk_bytes: int = CHUNK_BYTES) -> None:
        self.targets, self.layers, self.chunk_bytes = targets, layers, chunk_bytes
        self._differentiable = torch.is_grad_enabled()
        self._spans: tuple[Span, ...] = ()
        self._mask: Tensor | None = None
        self._known: dict[int, tuple[Tensor, Tensor]] = {}  # mass [N] and lse [H, N] by layer
        self._masses: dict[int, Tensor] = {}  # [N] by layer, with gradient

    def add(
        self, layer: int, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float, splits_rows: bool = False
    ) -> None:
        """Take a layer's queries [B, H, L, D] and keys [B, K, L, D] as they enter its attention.

        `splits_rows`: without a mask, this attention finds the samples of a packed row itself (flash by positions, or as
        groups).
        """
        if not self._known:
            self._begin(query, key, mask)
            if mask is None and not splits_rows and any(span.first for span in self._spans):
                raise ValueError(
                    "a sample begins behind its row's first token, but no mask hides what is before it: a packed or "
                    "left-padded batch needs its attention mask, or positions that begin anew with each sample"
                )
        recomputed = layer in self._known
        self._check(layer, recomputed)
        if not recomputed:
            self._known[layer] = measure(query, key, self._mask, self._spans, scaling, self.chunk_bytes)
        attached = with_gradient(query, key, *self._known[layer], self._mask, self._spans, scaling, self.chunk_bytes)
        if not recomputed:
            self._masses[layer] = attached

    def _begin(self, query: Tensor, key: Tensor, mask: Tensor | None) -> None:
        batch, length = self.targets.rows_BL.shape
        if query.shape[0] != batch or query.shape[2] != length or key.shape[2] != length:
            raise ValueError(
                f"the targets are for [{batch}, {length}] tokens, attention got {query.shape[0]} rows of {query.shape[2]} "
                f"queries and {key.shape[2]} keys; the attention loss takes whole sequences, without a cache"
            )
        self._spans = self.targets.spans(query.device)
        self._mask = drop_causal(mask, self._spans)  # the same for every layer

    def _check(self, layer: int, recomputed: bool) -> None:
        in_backward = torch._C._current_graph_task_id() != -1  # as torch.utils.checkpoint asks it
        if recomputed and not in_backward:
            raise ValueError(f"layer {layer} came twice: a BoxRecord belongs to one forward, make a new one for the next")
        if self._differentiable and not torch.is_grad_enabled():
            raise ValueError(
                "the record was made to train, but its layers run without gradients: checkpoint with use_reentrant=False, "
                "or make the record under no_grad too"
            )

    def mass(self) -> Tensor:
        """b [N], the mean over the chosen layers; rows in the order of `targets`. To be taken once.

        The record then lets go of the graph, which holds the record wherever layers are checkpointed.
        """
        missing = [layer for layer in self.layers if layer not in self._masses]
        if missing:
            raise ValueError(
                f"layers {missing} recorded nothing: call install(model) and give box_record to a forward; "
                "the model has these layers and hands keyword arguments down to its attention"
            )
        return torch.stack([self._masses.pop(layer) for layer in self.layers]).mean(0)


def install(model: PreTrainedModel) -> None:
    """Make the language model of `model` take a `box_record`; without one nothing changes. Again is harmless.

    Raises ValueError for attention whose mask or map the loss cannot share (eager builds the map, flex hides its mask).
    """
    config = text_config(model)
    before = config._attn_implementation
    if before.startswith(PREFIX):
        return
    if before not in ALL_ATTENTION_FUNCTIONS or before.endswith("flex_attention"):
        raise ValueError(f"the attention loss works beside attention=sdpa or flash_attention_2, the model has {before!r}")
    attention = cast(Attention, ALL_ATTENTION_FUNCTIONS[before])
    flash = "flash" in before
    measured = _measured(under_its_name(attention, before) if flash else attention, splits_rows=flash)
    AttentionInterface.register(PREFIX + before, measured)
    if before in ALL_MASK_ATTENTION_FUNCTIONS:  # attention by groups has none
        AttentionMaskInterface.register(PREFIX + before, ALL_MASK_ATTENTION_FUNCTIONS[before])
    config._attn_implementation = PREFIX + before


def text_config(model: PreTrainedModel) -> PretrainedConfig:
    """The configuration that the decoder layers read, never the vision tower's."""
    return cast(PretrainedConfig, model.get_decoder().config)


def _measured(attention: Attention, splits_rows: bool) -> Attention:
    def forward(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        scaling: float,
        box_record: BoxRecord | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        if box_record is not None and module.layer_idx in box_record.layers:
            alone = splits_rows or kwargs.get("groups") is not None
            box_record.add(module.layer_idx, query, key, attention_mask, scaling, alone)
        return attention(module, query, key, value, attention_mask, scaling=scaling, **kwargs)

    return forward


class _Renamed:
    """An attention module whose config names the implementation that the model had: flash loads its kernel by that name."""

    def __init__(self, module: nn.Module, name: str) -> None:
        self._module = module
        self.config = copy.copy(module.config)
        self.config._attn_implementation = name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def under_its_name(attention: Attention, name: str) -> Attention:
    """`attention` called by modules whose config has another name for it."""

    def forward(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        return attention(_Renamed(module, name), *args, **kwargs)

    return forward
