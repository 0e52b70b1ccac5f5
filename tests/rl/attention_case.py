"""Tiny models of the four families with image batches, and the attention loss computed from whole attention maps."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch import multiprocessing as mp
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from rl.attention_hook import BoxRecord, install
from rl.attention_loss import BoxTargets, box_loss

IMAGE, VIDEO, START = 5, 6, 7  # token ids
TEXT = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,  # attention far from uniform
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ROPE = {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [1, 1, 2]}
SPECIAL = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": 8}
VISION = {"depth": 1, "num_heads": 2, "patch_size": 14, "temporal_patch_size": 2, "initializer_range": 0.3}


def qwen2_vl() -> PreTrainedModel:
    config = Qwen2VLConfig(
        text_config=TEXT | {"rope_parameters": ROPE},
        vision_config=VISION | {"embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2, "spatial_merge_size": 2},
        **SPECIAL,
    )
    return Qwen2VLForConditionalGeneration._from_config(config, attn_implementation="sdpa")


def qwen2_5_vl() -> PreTrainedModel:
    vision = VISION | {"hidden_size": 16, "intermediate_size": 24, "out_hidden_size": 32, "fullatt_block_indexes": [0]}
    config = Qwen2_5_VLConfig(text_config=TEXT | {"rope_parameters": ROPE}, vision_config=vision, **SPECIAL)
    return Qwen2_5_VLForConditionalGeneration._from_config(config, attn_implementation="sdpa")


def qwen3_vl() -> PreTrainedModel:
    vision = VISION | {"patch_size": 16, "hidden_size": 16, "intermediate_size": 24, "out_hidden_size": 32}
    vision |= {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    config = Qwen3VLConfig(text_config=TEXT | {"head_dim": 8, "rope_parameters": ROPE}, vision_config=vision, **SPECIAL)
    return Qwen3VLForConditionalGeneration._from_config(config, attn_implementation="sdpa")


def llava_onevision() -> PreTrainedModel:
    vision = {"model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    config = LlavaOnevisionConfig(
        text_config=TEXT | {"model_type": "qwen2", "rope_parameters": {"rope_type": "default", "rope_theta": 100.0}},
        vision_config=vision | {"num_attention_heads": 2, "image_size": 28, "patch_size": 14, "vision_use_head": False},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        image_grid_pinpoints=[[28, 28]],
    )
    return LlavaOnevisionForConditionalGeneration._from_config(config, attn_implementation="sdpa")


FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "llava_onevision": llava_onevision,
}


def whole_map_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, **_: object
) -> tuple[Tensor, Tensor]:
    """Eager attention in the dtype it gets; transformers' own takes its softmax in float32, no reference for float64."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.mT * scaling
    weights = (scores if mask is None else scores + mask).softmax(-1)
    return (weights @ value).transpose(1, 2), weights


AttentionInterface.register("whole_map", whole_map_attention)
AttentionMaskInterface.register("whole_map", ALL_MASK_ATTENTION_FUNCTIONS["eager"])


@dataclass(frozen=True)
class Case:
    """A padded batch for a family: arguments of `model.model`, what the loss looks at, and the real tokens."""

    arguments: dict[str, Tensor]
    targets: BoxTargets
    tokens_BL: Tensor

    def row(self, number: int) -> Case:
        """One row alone, without its padding."""
        own = self.tokens_BL[number]
        pixels = {name: self.arguments[name].chunk(len(self.tokens_BL))[number] for name in self.arguments if name in PIXELS}
        tokens = {name: self.arguments[name][number, own][None] for name in self.arguments if name not in PIXELS}
        targets = (self.targets.rows_BL, self.targets.columns_BL, self.tokens_BL)
        return Case(pixels | tokens, BoxTargets.padded(*(mask[number, own][None] for mask in targets)), own[own][None])


PIXELS = ("pixel_values", "image_grid_thw", "image_sizes")
LENGTHS = (38, 30)


def make_case(family: str, model: PreTrainedModel, side: str = "right", lengths: tuple[int, ...] = LENGTHS) -> Case:
    """Rows of [text | support image | box text | text | query image | text], padded on `side`."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        images = 2 * len(lengths)
        pixels, image_tokens = pixels_of(family, images, model.dtype)
        shape = (len(lengths), max(lengths))
        ids = torch.zeros(shape, dtype=torch.long)
        rows, columns, tokens = (torch.zeros(shape, dtype=torch.bool) for _ in range(3))
        for b, length in enumerate(lengths):
            at = 0 if side == "right" else max(lengths) - length
            ids[b, at : at + length] = torch.randint(10, 60, (length,))
            tokens[b, at : at + length] = True
            support, query = at + 2, at + length - 3 - image_tokens
            ids[b, [support - 1, query - 1]] = START
            ids[b, support : support + image_tokens] = ids[b, query : query + image_tokens] = IMAGE
            rows[b, query : query + image_tokens] = True
            columns[b, support + image_tokens + 1 : support + image_tokens + 4] = True
    arguments = {"input_ids": ids, "attention_mask": tokens.long(), **pixels}
    if family != "llava_onevision":
        arguments["mm_token_type_ids"] = (ids == IMAGE).int()
    return Case(arguments, BoxTargets.padded(rows, columns, tokens), tokens)


def pixels_of(family: str, images: int, dtype: torch.dtype) -> tuple[dict[str, Tensor], int]:
    if family == "llava_onevision":
        pixels = torch.randn(images, 2, 3, 28, 28, dtype=dtype)
        return {"pixel_values": pixels, "image_sizes": torch.tensor([[28, 28]] * images)}, 10
    patch = 16 if family == "qwen3_vl" else 14
    pixels = torch.randn(images * 16, 3 * 2 * patch**2, dtype=dtype)
    return {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, 4, 4]] * images)}, 4


def naive_loss(
    maps: tuple[Tensor, ...], case: Case, margin: float, reduction: str = "mean", denominator: str = "all"
) -> Tensor:
    """Eqs. 5–10 on the whole maps [B, H, L, L] of the chosen layers, row by row: [B]."""
    mean_BLL = torch.stack(maps).mean(0).mean(1)
    losses = []
    for b, tokens in enumerate(case.tokens_BL):
        hinges = []
        for i in case.targets.rows_BL[b].nonzero()[:, 0].tolist():
            counted = tokens if denominator == "all" else tokens & (torch.arange(len(tokens)) <= i)
            m, other = case.targets.columns_BL[b] & counted, ~case.targets.columns_BL[b] & counted
            share = mean_BLL[b, i]
            plus = share[m].sum() if reduction == "sum" else share[m].sum() / m.sum()
            minus = share[other].sum() / other.sum()
            hinges.append(torch.relu(margin - (plus - minus)) ** 2)
        losses.append(torch.stack(hinges).mean())
    return torch.stack(losses)


def gradients_of(rank: int, world: int) -> dict[str, Tensor]:
    """Gradients of a rank's sample (or, in one process, of the mean over the samples), by parameter, checkpointed."""
    torch.manual_seed(0)
    model = qwen2_5_vl().double().train()
    install(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    case = make_case("qwen2_5_vl", model)
    inner = model.model
    if world > 1:
        case = case.row(rank)
        for block in [*inner.language_model.layers, *inner.visual.blocks]:
            fully_shard(block)
        fully_shard(inner)
    record = BoxRecord(case.targets, (0, 1))
    hidden = inner(**case.arguments, use_cache=False, box_record=record).last_hidden_state
    others = torch.stack([row[tokens].sin().mean() for row, tokens in zip(hidden, case.tokens_BL, strict=True)])
    (others + box_loss(record.mass(), case.targets, 0.5)).mean().backward()
    gradients = {name: p.grad for name, p in inner.named_parameters() if p.grad is not None}
    return {name: g.full_tensor() if isinstance(g, DTensor) else g for name, g in gradients.items()}


def one_process() -> dict[str, Tensor]:
    return gradients_of(0, 1)


def _rank(rank: int, port: int, out: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    gradients = gradients_of(rank, 2)
    if rank == 0:
        torch.save(gradients, out)
    dist.destroy_process_group()


def on_two_ranks(out: Path) -> dict[str, Tensor]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_rank, args=(port, out), nprocs=2)
    loaded: dict[str, Tensor] = torch.load(out)
    return loaded
