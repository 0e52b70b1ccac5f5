"""The parameters of each supported architecture, in transformers' order and names, as a function of its config.json.

A config may be flat, as Qwen2-VL's were published, or hold its language model under `text_config`, as transformers writes
it today; what it leaves out has transformers' default. tests/rl/plan compares every number with the module built on `meta`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rl.plan.parameters import LanguageShape, ParameterBlock, ParameterShape, VisionShape, linear, norm

Config = Mapping[str, Any]

# transformers' defaults of what published configs leave out.
_VISION_DEFAULTS: dict[str, dict[str, Any]] = {
    "qwen2_vl": {"depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16, "hidden_size": 3584},
    "qwen2_5_vl": {
        "depth": 32,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 3584,
        "window_size": 112,
        "fullatt_block_indexes": (7, 15, 23, 31),
    },
    "qwen3_vl": {
        "depth": 27,
        "intermediate_size": 4304,
        "num_heads": 16,
        "out_hidden_size": 3584,
        "patch_size": 16,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": (8, 16, 24),
    },
    "llava_onevision": {"patch_size": 14, "vision_use_head": False, "num_channels": 3},
}
_QWEN_VISION_DEFAULTS = {"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3}


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model's blocks without LoRA, all trainable; `vision` and `language` for what is no parameter."""

    blocks: tuple[ParameterBlock, ...]
    language: LanguageShape
    vision: VisionShape
    tied: bool


def architecture_of(config: Config) -> Architecture:
    """Raises ValueError for a `model_type` the planner does not know, and for a config that lacks a field of its own."""
    model_type = config.get("model_type")
    if model_type not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ValueError(f"the planner knows the model types {known}; this config.json has model_type={model_type!r}")
    text = config.get("text_config") or config
    vision = _QWEN_VISION_DEFAULTS | _VISION_DEFAULTS[model_type] | dict(config.get("vision_config") or {})
    try:
        return ARCHITECTURES[model_type](config, text, vision)
    except KeyError as error:
        raise ValueError(f"the config.json of a {model_type} has no field {error}; is it the model's own?") from error


def _language(text: Config, head_dim: int | None = None, head_norms: bool = False, rotary_axes: int = 1) -> LanguageShape:
    heads = text["num_attention_heads"]
    return LanguageShape(
        hidden=text["hidden_size"],
        layers=text["num_hidden_layers"],
        heads=heads,
        kv_heads=text["num_key_value_heads"],
        head_dim=head_dim or text["hidden_size"] // heads,
        intermediate=text["intermediate_size"],
        vocab=text["vocab_size"],
        head_norms=head_norms,
        rotary_axes=rotary_axes,
    )


def _decoder_layer(shape: LanguageShape, qkv_bias: bool, o_bias: bool) -> tuple[ParameterShape, ...]:
    wide, narrow = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    return (
        *linear("self_attn.q_proj", wide, shape.hidden, qkv_bias),
        *linear("self_attn.k_proj", narrow, shape.hidden, qkv_bias),
        *linear("self_attn.v_proj", narrow, shape.hidden, qkv_bias),
        *linear("self_attn.o_proj", shape.hidden, wide, o_bias),
        *(norm("self_attn.q_norm", shape.head_dim) if shape.head_norms else ()),
        *(norm("self_attn.k_norm", shape.head_dim) if shape.head_norms else ()),
        *linear("mlp.gate_proj", shape.intermediate, shape.hidden),
        *linear("mlp.up_proj", shape.intermediate, shape.hidden),
        *linear("mlp.down_proj", shape.hidden, shape.intermediate),
        *norm("input_layernorm", shape.hidden),
        *norm("post_attention_layernorm", shape.hidden),
    )


def _decoder(shape: LanguageShape, layer: tuple[ParameterShape, ...], tied: bool) -> tuple[ParameterBlock, ...]:
    embedding = (ParameterShape("weight", (shape.vocab, shape.hidden)),)
    head = () if tied else (ParameterBlock("lm_head", "head", linear("lm_head", shape.vocab, shape.hidden)),)
    prefix = "model.language_model"
    return (
        ParameterBlock(f"{prefix}.embed_tokens", "embedding", embedding),
        ParameterBlock(f"{prefix}.layers", "language", layer, count=shape.layers, sharded_alone=True),
        ParameterBlock(f"{prefix}.norm", "language", norm("norm", shape.hidden)),
        *head,
    )


def _patch_embed(vision: Config, hidden: int, bias: bool) -> ParameterBlock:
    kernel = (vision["in_channels"], vision["temporal_patch_size"], vision["patch_size"], vision["patch_size"])
    weight = ParameterShape("proj.weight", (hidden, *kernel), linear=True)
    return ParameterBlock(
        "model.visual.patch_embed", "vision", (weight, ParameterShape("proj.bias", (hidden,))) if bias else (weight,)
    )


def _tower(vision: Config, hidden: int, intermediate: int, mlp_tensors: int, window: int, full: int) -> VisionShape:
    """A Qwen tower: rotary positions; the gated one, with four tensors of the MLP's width, has RMSNorm."""
    return VisionShape(
        hidden=hidden,
        layers=vision["depth"],
        heads=vision["num_heads"],
        patch=vision["patch_size"],
        merge=vision["spatial_merge_size"],
        intermediate=intermediate,
        gated=mlp_tensors == 4,
        mlp_tensors=mlp_tensors,
        rms_norm=mlp_tensors == 4,
        rotary=True,
        patch_inputs=vision["in_channels"] * vision["temporal_patch_size"] * vision["patch_size"] ** 2,
        window=window,
        full_attention_layers=full,
    )


def _siglip(vision: Config) -> VisionShape:
    """LLaVA-OneVision's tower: learnt positions, no merging of patches."""
    return VisionShape(
        hidden=vision["hidden_size"],
        layers=vision["num_hidden_layers"],
        heads=vision["num_attention_heads"],
        patch=vision["patch_size"],
        merge=1,
        intermediate=vision["intermediate_size"],
        gated=False,
        mlp_tensors=2,
        rms_norm=False,
        rotary=False,
        patch_inputs=vision["num_channels"] * vision["patch_size"] ** 2,
        window=0,
        full_attention_layers=vision["num_hidden_layers"],
    )


def _vision_blocks(name: str, shape: VisionShape, parameters: tuple[ParameterShape, ...]) -> ParameterBlock:
    return ParameterBlock(name, "vision", parameters, count=shape.layers, sharded_alone=True)


def _vision_attention(hidden: int) -> tuple[ParameterShape, ...]:
    return (*linear("attn.qkv", 3 * hidden, hidden, bias=True), *linear("attn.proj", hidden, hidden, bias=True))


def _qwen2_vl(config: Config, text: Config, vision: Config) -> Architecture:
    hidden = vision["embed_dim"]
    tower = _tower(vision, hidden, int(hidden * vision["mlp_ratio"]), mlp_tensors=3, window=0, full=vision["depth"])
    block = (
        *norm("norm1", hidden, bias=True),
        *norm("norm2", hidden, bias=True),
        *_vision_attention(hidden),
        *linear("mlp.fc1", tower.intermediate, hidden, bias=True),
        *linear("mlp.fc2", hidden, tower.intermediate, bias=True),
    )
    wide = hidden * tower.merge**2
    merger = (
        *norm("ln_q", hidden, bias=True),
        *linear("mlp.0", wide, wide, bias=True),
        *linear("mlp.2", vision["hidden_size"], wide, bias=True),
    )
    language, tied = _language(text, rotary_axes=3), _is_tied(config)
    blocks = (
        _patch_embed(vision, hidden, bias=False),
        _vision_blocks("model.visual.blocks", tower, block),
        ParameterBlock("model.visual.merger", "projector", merger),
        *_decoder(language, _decoder_layer(language, qkv_bias=True, o_bias=False), tied),
    )
    return Architecture(blocks, language, tower, tied)


def _qwen2_5_vl(config: Config, text: Config, vision: Config) -> Architecture:
    hidden, full = vision["hidden_size"], len(vision["fullatt_block_indexes"])
    tower = _tower(vision, hidden, vision["intermediate_size"], mlp_tensors=4, window=vision["window_size"], full=full)
    block = (
        *norm("norm1", hidden),
        *norm("norm2", hidden),
        *_vision_attention(hidden),
        *linear("mlp.gate_proj", tower.intermediate, hidden, bias=True),
        *linear("mlp.up_proj", tower.intermediate, hidden, bias=True),
        *linear("mlp.down_proj", hidden, tower.intermediate, bias=True),
    )
    wide = hidden * tower.merge**2
    merger = (
        *norm("ln_q", hidden),
        *linear("mlp.0", wide, wide, bias=True),
        *linear("mlp.2", vision["out_hidden_size"], wide, bias=True),
    )
    language, tied = _language(text, rotary_axes=3), _is_tied(config)
    blocks = (
        _patch_embed(vision, hidden, bias=False),
        _vision_blocks("model.visual.blocks", tower, block),
        ParameterBlock("model.visual.merger", "projector", merger),
        *_decoder(language, _decoder_layer(language, qkv_bias=True, o_bias=False), tied),
    )
    return Architecture(blocks, language, tower, tied)


def _qwen3_vl(config: Config, text: Config, vision: Config) -> Architecture:
    hidden = vision["hidden_size"]
    tower = _tower(vision, hidden, vision["intermediate_size"], mlp_tensors=2, window=0, full=vision["depth"])
    block = (
        *norm("norm1", hidden, bias=True),
        *norm("norm2", hidden, bias=True),
        *_vision_attention(hidden),
        *linear("mlp.linear_fc1", tower.intermediate, hidden, bias=True),
        *linear("mlp.linear_fc2", hidden, tower.intermediate, bias=True),
    )
    wide = hidden * tower.merge**2

    def merger(norm_size: int) -> tuple[ParameterShape, ...]:
        first = linear("linear_fc1", wide, wide, bias=True)
        return (
            *norm("norm", norm_size, bias=True),
            *first,
            *linear("linear_fc2", vision["out_hidden_size"], wide, bias=True),
        )

    positions = ParameterShape("weight", (vision["num_position_embeddings"], hidden))
    deep = len(vision["deepstack_visual_indexes"])
    language, tied = _language(text, text.get("head_dim") or 128, head_norms=True), _is_tied(config)
    bias = bool(text.get("attention_bias", False))
    blocks = (
        _patch_embed(vision, hidden, bias=True),
        ParameterBlock("model.visual.pos_embed", "vision", (positions,)),
        _vision_blocks("model.visual.blocks", tower, block),
        ParameterBlock("model.visual.merger", "projector", merger(hidden)),
        ParameterBlock("model.visual.deepstack_merger_list", "projector", merger(wide), count=deep),
        *_decoder(language, _decoder_layer(language, qkv_bias=bias, o_bias=bias), tied),
    )
    return Architecture(blocks, language, tower, tied)


def _llava_onevision(config: Config, text: Config, vision: Config) -> Architecture:
    hidden, intermediate, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    if vision["vision_use_head"]:
        raise ValueError("the planner knows LLaVA-OneVision's image tower without a pooling head; set vision_use_head=false")
    tower = _siglip(vision)
    block = (
        *norm("layer_norm1", hidden, bias=True),
        *(part for name in "kvq" for part in linear(f"self_attn.{name}_proj", hidden, hidden, bias=True)),
        *linear("self_attn.out_proj", hidden, hidden, bias=True),
        *norm("layer_norm2", hidden, bias=True),
        *linear("mlp.fc1", intermediate, hidden, bias=True),
        *linear("mlp.fc2", hidden, intermediate, bias=True),
    )
    embeddings = (
        ParameterShape("patch_embedding.weight", (hidden, vision["num_channels"], patch, patch), linear=True),
        ParameterShape("patch_embedding.bias", (hidden,)),
        ParameterShape("position_embedding.weight", ((vision["image_size"] // patch) ** 2, hidden)),
    )
    language, tied = _language(text), _is_tied(config)
    size = language.hidden
    projector = (*linear("linear_1", size, hidden, bias=True), *linear("linear_2", size, size, bias=True))
    blocks = (
        ParameterBlock("model", "projector", (ParameterShape("image_newline", (size,)),)),
        ParameterBlock("model.vision_tower.embeddings", "vision", embeddings, sharded_alone=True),
        _vision_blocks("model.vision_tower.encoder.layers", tower, block),
        ParameterBlock("model.vision_tower", "vision", norm("post_layernorm", hidden, bias=True)),
        ParameterBlock("model.multi_modal_projector", "projector", projector),
        *_decoder(language, _decoder_layer(language, qkv_bias=True, o_bias=False), tied),
    )
    return Architecture(blocks, language, tower, tied)


def _is_tied(config: Config) -> bool:
    return bool(config.get("tie_word_embeddings", False))


ARCHITECTURES: dict[str, Callable[[Config, Config, Config], Architecture]] = {
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "llava_onevision": _llava_onevision,
}
