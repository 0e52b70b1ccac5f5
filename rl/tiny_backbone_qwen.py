"""The tiny Qwen2-VL and Qwen2.5-VL: they share processor and language model and differ in the vision tower."""

from __future__ import annotations

from typing import Any

from transformers import (
    PretrainedConfig,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from rl import tiny_backbone_vocabulary as vocabulary
from rl.tiny_backbone_language import Architecture, TinyShape, text_settings

PATCH_SIZE = 14
MERGE_SIZE = 2


def _processor(kind: type[ProcessorMixin], shape: TinyShape, tokenizer: Qwen2Tokenizer) -> ProcessorMixin:
    """The 7B's processor with this shape's pixel limits."""
    pixels = {"shortest_edge": shape.min_pixels, "longest_edge": shape.max_pixels}
    return kind(
        image_processor=Qwen2VLImageProcessor(size=dict(pixels), patch_size=PATCH_SIZE, merge_size=MERGE_SIZE),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=dict(pixels), patch_size=PATCH_SIZE, merge_size=MERGE_SIZE),
        chat_template=vocabulary.CHAT_TEMPLATE,
    )


def _config(
    kind: type[PretrainedConfig], shape: TinyShape, tokenizer: Qwen2Tokenizer, vision: dict[str, Any]
) -> PretrainedConfig:
    token_id = tokenizer.convert_tokens_to_ids
    return kind(
        text_config=text_settings(shape, tokenizer, mrope_section=list(shape.mrope_section)),
        vision_config=vision
        | {
            "depth": shape.vision_layers,
            "num_heads": shape.vision_heads,
            "patch_size": PATCH_SIZE,
            "spatial_merge_size": MERGE_SIZE,
            "temporal_patch_size": 2,
            "initializer_range": shape.initializer_range,
        },
        image_token_id=token_id(vocabulary.IMAGE_PAD),
        video_token_id=token_id(vocabulary.VIDEO_PAD),
        vision_start_token_id=token_id(vocabulary.VISION_START),
        vision_end_token_id=token_id(vocabulary.VISION_END),
        tie_word_embeddings=True,
        initializer_range=shape.initializer_range,
    )


def _qwen2_vl_processor(shape: TinyShape, tokenizer: Qwen2Tokenizer) -> ProcessorMixin:
    return _processor(Qwen2VLProcessor, shape, tokenizer)


def _qwen2_vl_config(shape: TinyShape, tokenizer: Qwen2Tokenizer) -> PretrainedConfig:
    vision = {
        "embed_dim": shape.vision_hidden_size,
        "mlp_ratio": shape.vision_intermediate_size // shape.vision_hidden_size,
        "hidden_size": shape.hidden_size,
    }
    return _config(Qwen2VLConfig, shape, tokenizer, vision)


def _qwen2_5_vl_processor(shape: TinyShape, tokenizer: Qwen2Tokenizer) -> ProcessorMixin:
    return _processor(Qwen2_5_VLProcessor, shape, tokenizer)


def _qwen2_5_vl_config(shape: TinyShape, tokenizer: Qwen2Tokenizer) -> PretrainedConfig:
    """Full vision attention in every layer, since an image is smaller than one attention window."""
    vision = {
        "hidden_size": shape.vision_hidden_size,
        "intermediate_size": shape.vision_intermediate_size,
        "out_hidden_size": shape.hidden_size,
        "window_size": 112,
        "fullatt_block_indexes": list(range(shape.vision_layers)),
    }
    return _config(Qwen2_5_VLConfig, shape, tokenizer, vision)


QWEN2_VL = Architecture(Qwen2VLForConditionalGeneration, _qwen2_vl_config, _qwen2_vl_processor)
QWEN2_5_VL = Architecture(Qwen2_5_VLForConditionalGeneration, _qwen2_5_vl_config, _qwen2_5_vl_processor)
