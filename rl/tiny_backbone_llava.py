"""The tiny LLaVA-OneVision: SigLIP tower, projector, and the Qwen2 language model with plain positions.

A tile is 56 px, 4 × 4 tokens. A prompt's only image is 1 to 4 tiles of detail besides the whole; several images are a tile
each, 17 tokens with the one that ends the image, as in the published model with its tiles of 384 px.
"""

from __future__ import annotations

from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    Qwen2Tokenizer,
)

from rl import tiny_backbone_vocabulary as vocabulary
from rl.tiny_backbone_language import Architecture, TinyShape, text_settings

PATCH_SIZE = 14
TILE = 56
PINPOINTS = [[height, width] for height in (TILE, 2 * TILE) for width in (TILE, 2 * TILE)]


def _processor(shape: TinyShape, tokenizer: Qwen2Tokenizer) -> LlavaOnevisionProcessor:
    size = {"height": TILE, "width": TILE}
    return LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(size=dict(size), image_grid_pinpoints=PINPOINTS),
        tokenizer=tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(size=dict(size)),
        num_image_tokens=(TILE // PATCH_SIZE) ** 2,
        vision_feature_select_strategy="full",
        chat_template=vocabulary.LLAVA_CHAT_TEMPLATE,
        image_token=vocabulary.LLAVA_IMAGE,
        video_token=vocabulary.LLAVA_VIDEO,
        vision_aspect_ratio="anyres_max_9",
    )


def _config(shape: TinyShape, tokenizer: Qwen2Tokenizer) -> LlavaOnevisionConfig:
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": shape.vision_hidden_size,
        "intermediate_size": shape.vision_intermediate_size,
        "num_hidden_layers": shape.vision_layers,
        "num_attention_heads": shape.vision_heads,
        "image_size": TILE,
        "patch_size": PATCH_SIZE,
        "vision_use_head": False,
    }
    return LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **text_settings(shape, tokenizer)},
        vision_config=vision,
        image_token_index=tokenizer.convert_tokens_to_ids(vocabulary.LLAVA_IMAGE),
        video_token_index=tokenizer.convert_tokens_to_ids(vocabulary.LLAVA_VIDEO),
        image_grid_pinpoints=PINPOINTS,
        tie_word_embeddings=True,
    )


LLAVA_ONEVISION = Architecture(
    LlavaOnevisionForConditionalGeneration,
    _config,
    _processor,
    # With one axis a position counts all tokens before it: at the Qwens' 3 every angle would repeat within 20 tokens.
    shape=TinyShape(rope_theta=100.0),
    special_tokens=vocabulary.LLAVA_SPECIAL_TOKENS,
    chat_template=vocabulary.LLAVA_CHAT_TEMPLATE,
)
