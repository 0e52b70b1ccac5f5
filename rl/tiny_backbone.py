"""The tiny backbone: a Qwen2.5-VL-architecture model under 2 M parameters in a Hugging Face folder, from random numbers.

    python -m rl.tiny_backbone --out DIR [--seed 0]

It has its own tokenizer, chat template and processor and loads through the very classes that load Qwen2.5-VL-7B, in
transformers and in vLLM. It differs from its big sister in size, and in three choices that let so small a model see:

    rope_theta 3             at 1e4 the multimodal RoPE turns by too little for the few patches of a small image to differ
    full vision attention    in every layer, since an image is smaller than one attention window
    tied embeddings          as the 3B: a quarter of the parameters would otherwise be the output table

The same seed gives the same bytes.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from rl import tiny_backbone_vocabulary as vocabulary

PATCH_SIZE = 14
MERGE_SIZE = 2


@dataclass(frozen=True)
class TinyShape:
    """The sizes of the model. Head dimensions are 32, the smallest that vLLM's CPU attention has."""

    hidden_size: int = 96
    intermediate_size: int = 256
    layers: int = 3
    heads: int = 3
    kv_heads: int = 1
    vision_hidden_size: int = 64
    vision_intermediate_size: int = 128
    vision_layers: int = 2
    vision_heads: int = 2
    rope_theta: float = 3.0
    mrope_section: tuple[int, int, int] = (4, 6, 6)
    initializer_range: float = 0.05
    min_pixels: int = 56 * 56
    max_pixels: int = 112 * 112
    max_positions: int = 2048


def build_tokenizer() -> Qwen2Tokenizer:
    """Byte-level BPE in which every word of the vocabulary is one token, with and without the space before it."""
    spelled = [form for word in vocabulary.words() for form in (word, f" {word}")]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    # No size limit and no minimal count: training ends when no pair is left to merge, which makes every word whole.
    trainer = trainers.BpeTrainer(
        vocab_size=100_000,
        min_frequency=0,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    bpe.train_from_iterator(spelled, trainer)
    learned = json.loads(bpe.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=[tuple(pair) for pair in learned["merges"]],
        unk_token=vocabulary.END_OF_TEXT,
        eos_token=vocabulary.TURN_END,
        pad_token=vocabulary.END_OF_TEXT,
        extra_special_tokens=list(vocabulary.SPECIAL_TOKENS),
        model_max_length=TinyShape.max_positions,
    )
    plain = [*vocabulary.TAGS, *vocabulary.SENTENCES, vocabulary.COORDINATE_SEPARATOR]
    plain += [str(integer) for integer in range(vocabulary.LARGEST_INTEGER + 1)]
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in plain])
    tokenizer.chat_template = vocabulary.CHAT_TEMPLATE
    return tokenizer


def build_processor(shape: TinyShape, tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLProcessor:
    """The 7B's processor with this shape's pixel limits."""
    pixels = {"shortest_edge": shape.min_pixels, "longest_edge": shape.max_pixels}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=dict(pixels), patch_size=PATCH_SIZE, merge_size=MERGE_SIZE),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=dict(pixels), patch_size=PATCH_SIZE, merge_size=MERGE_SIZE),
        chat_template=vocabulary.CHAT_TEMPLATE,
    )


def build_config(shape: TinyShape, tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLConfig:
    token_id = tokenizer.convert_tokens_to_ids
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "max_position_embeddings": shape.max_positions,
        "initializer_range": shape.initializer_range,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": shape.rope_theta,
            "mrope_section": list(shape.mrope_section),
        },
        "tie_word_embeddings": True,
        "bos_token_id": token_id(vocabulary.END_OF_TEXT),
        "eos_token_id": token_id(vocabulary.TURN_END),
        "pad_token_id": token_id(vocabulary.END_OF_TEXT),
    }
    vision = {
        "depth": shape.vision_layers,
        "hidden_size": shape.vision_hidden_size,
        "intermediate_size": shape.vision_intermediate_size,
        "num_heads": shape.vision_heads,
        "out_hidden_size": shape.hidden_size,
        "patch_size": PATCH_SIZE,
        "spatial_merge_size": MERGE_SIZE,
        "temporal_patch_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": list(range(shape.vision_layers)),
        "initializer_range": shape.initializer_range,
    }
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=token_id(vocabulary.IMAGE_PAD),
        video_token_id=token_id(vocabulary.VIDEO_PAD),
        vision_start_token_id=token_id(vocabulary.VISION_START),
        vision_end_token_id=token_id(vocabulary.VISION_END),
        tie_word_embeddings=True,
        initializer_range=shape.initializer_range,
    )


def build_model(shape: TinyShape, tokenizer: Qwen2Tokenizer, seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """Random weights in fp32. The caller's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(build_config(shape, tokenizer))
    token_id = tokenizer.convert_tokens_to_ids
    model.generation_config = GenerationConfig(
        eos_token_id=[token_id(vocabulary.TURN_END), token_id(vocabulary.END_OF_TEXT)],
        pad_token_id=token_id(vocabulary.END_OF_TEXT),
    )
    return model


def write(out: Path, seed: int = 0, shape: TinyShape | None = None) -> int:
    """Write the Hugging Face folder; returns the number of parameters."""
    shape = shape or TinyShape()
    tokenizer = build_tokenizer()
    model = build_model(shape, tokenizer, seed)
    model.save_pretrained(out)
    build_processor(shape, tokenizer).save_pretrained(out)
    return int(model.num_parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description="write the tiny backbone, a random Qwen2.5-VL-architecture model")
    parser.add_argument("--out", type=Path, required=True, help="folder to write, in Hugging Face format")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    parameters = write(arguments.out, arguments.seed)
    print(f"{arguments.out}: {parameters:,} parameters")


if __name__ == "__main__":
    main()
