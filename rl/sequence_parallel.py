"""One sequence on several ranks: each holds a slice of its tokens and, inside attention, a slice of its heads.

    embeddings [B, L, D]
      └─ cut ─► [B, L/n, D] ─► norm, q, k, v [B, H, L/n, d] ══ all-to-all ══► [B, H/n, L, d] ─► attention, whole mask
                    ▲                                                                               │
                    └──────── mlp ◄─ [B, L/n, D] ◄─ output projection ◄═════ all-to-all ════════════┘
      ┌─ join (all-gather) after the last layer
    hidden [B, L, D] ─► answer tokens, an equal part scored by each rank ══ all-reduce ══► logprobs [K] on every rank

The all-to-all over heads is DeepSpeed-Ulysses (Jacobs et al., arXiv:2309.14509). It leaves what a layer computes as it
is, so any mask and any rotary positions hold, and the attention loss measures the heads of its rank. The vision tower and
the embeddings are computed whole by every rank of the group.

Gradients: torch's functional collectives differentiate the sum of all ranks' losses. The n ranks of a group have the same
loss, scaled by the W/n groups, and an engine averages over all W ranks: (1/W) · n · (W/n) · L = L, with no factor here.

Shape suffixes: B rows, L tokens a row, H heads, D hidden, d head dimension, K answer tokens, n ranks of a group.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_gather_single, all_reduce, all_to_all_single, wait_tensor
from transformers import AttentionInterface, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rl.attention_hook import Attention, text_config, under_its_name

PREFIX = "sequence_parallel_"
Scores = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class SequenceParallel:
    """This rank's place in a group of `size` neighbouring ranks that compute every sequence of `model` together.

    Made by all ranks of the process group, after `rl.attention_hook.install` where both are wanted. Rows must have a
    multiple of `size` tokens (`rl.layout.lay_out` pads them). Raises ValueError where the heads cannot be shared out.
    """

    def __init__(self, model: PreTrainedModel, size: int) -> None:
        config = text_config(model)
        heads, key_heads = config.num_attention_heads, config.num_key_value_heads
        if heads % size or (key_heads % size and size % key_heads):
            raise ValueError(
                f"`learner.sequence_parallel` is {size}: so many ranks cannot share out the model's {heads} heads and "
                f"{key_heads} key heads evenly; use a divisor of the heads that divides the key heads or is their multiple"
            )
        self.size, self.copies = size, max(1, size // key_heads)  # copies: of a key head, where ranks are more than those
        self.group, _ = dist.new_subgroups(size)
        self.rank = dist.get_rank(self.group)
        _exchange_heads_in(model)
        decoder = model.get_decoder()
        decoder.register_forward_pre_hook(self._cut, with_kwargs=True)
        decoder.register_forward_hook(self._join)

    def _mine(self, count: int) -> slice:
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def _cut(self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The decoder's arguments for this rank's tokens; the mask stays whole, for attention sees whole sequences."""
        embeddings_BLD, mask = kwargs["inputs_embeds"], kwargs["attention_mask"]
        assert embeddings_BLD.shape[1] % self.size == 0 and (mask is None or mask.dim() == 4)
        mine = self._mine(embeddings_BLD.shape[1])
        cut = {"inputs_embeds": embeddings_BLD[:, mine], "position_ids": kwargs["position_ids"][..., mine], "sequence": self}
        if kwargs.get("deepstack_visual_embeds") is not None:  # Qwen3-VL: image features added between the first layers
            image_BL = kwargs["visual_pos_masks"]
            own_BL = torch.zeros_like(image_BL)
            own_BL[:, mine] = True
            cut["visual_pos_masks"] = image_BL[:, mine]
            cut["deepstack_visual_embeds"] = [features[own_BL[image_BL]] for features in kwargs["deepstack_visual_embeds"]]
        return args, kwargs | cut

    def _join(self, decoder: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        output.last_hidden_state = wait_tensor(all_gather_single(output.last_hidden_state, 1, self.group))
        return output

    def heads_of_all_tokens(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """[B, H, L/n, d] each → [B, H/n, L, d] each, in one exchange."""
        if self.copies > 1:
            key, value = (tensor.repeat_interleave(self.copies, 1) for tensor in (key, value))
        by_rank = [tensor.unflatten(1, (self.size, -1)) for tensor in (query, key, value)]
        sent = torch.cat(by_rank, 2).transpose(0, 1).contiguous()  # [n of heads, B, heads, L/n, d]
        received = wait_tensor(all_to_all_single(sent, None, None, self.group))  # [n of tokens, …]
        whole = received.permute(1, 2, 0, 3, 4).flatten(2, 3)
        return cast(tuple[Tensor, ...], whole.split([part.shape[2] for part in by_rank], 1))

    def tokens_of_all_heads(self, tensor: Tensor) -> Tensor:
        """[B, L, H/n, d] → [B, L/n, H, d]."""
        sent = tensor.unflatten(1, (self.size, -1)).transpose(0, 1).contiguous()  # [n of tokens, B, L/n, heads, d]
        received = wait_tensor(all_to_all_single(sent, None, None, self.group))  # [n of heads, …]
        return received.permute(1, 2, 0, 3, 4).flatten(2, 3)

    def shared_out(self, score: Scores, hidden_KD: Tensor, target_K: Tensor) -> tuple[Tensor, Tensor]:
        """`score` of all rows, of which each rank computes an equal part."""
        count = len(target_K)
        mine = self._mine(count)
        logprobs_K, entropy_K = (
            self._sum(nn.functional.pad(part, (mine.start, count - mine.stop)))
            for part in score(hidden_KD[mine], target_K[mine])
        )
        return logprobs_K, entropy_K

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the group of what each rank found on its heads."""
        return self._sum(values) / self.size

    def _sum(self, values: Tensor) -> Tensor:
        return cast(Tensor, wait_tensor(all_reduce(values, "sum", self.group)))


def _exchange_heads_in(model: PreTrainedModel) -> None:
    """Make the language model's attention run between two exchanges when its arguments name a `sequence`.

    Only the attention is registered, no mask under its name: transformers then makes none of its own, which could only
    be a slice's, and hands a four-dimensional one through as it is.
    """
    config = text_config(model)
    before = config._attn_implementation
    attention = cast(Attention, ALL_ATTENTION_FUNCTIONS[before])
    AttentionInterface.register(PREFIX + before, _between_exchanges(under_its_name(attention, before)))
    config._attn_implementation = PREFIX + before


def _between_exchanges(attention: Attention) -> Attention:
    def forward(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        sequence: SequenceParallel,
        position_ids: Tensor | None = None,  # a slice's: a kernel that looks for packed samples in it must not get it
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        query, key, value = sequence.heads_of_all_tokens(query, key, value)
        own = _WithOwnHeads(module, query.shape[1] // key.shape[1])
        output, _ = attention(own, query, key, value, attention_mask, **kwargs)
        return sequence.tokens_of_all_heads(output), None

    return forward


class _WithOwnHeads:
    """An attention module that has as many query heads a key head as this rank got."""

    def __init__(self, module: nn.Module, groups: int) -> None:
        self._module = module
        self.num_key_value_groups = groups

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)
