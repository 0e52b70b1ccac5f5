"""What every tiny backbone shares: its sizes, its tokenizer, and the settings of its language model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from transformers import PretrainedConfig, PreTrainedModel, ProcessorMixin, Qwen2Tokenizer

from rl import tiny_backbone_vocabulary as vocabulary


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


@dataclass(frozen=True)
class Architecture:
    """What a model family adds to the shared language: its marks, its classes and its settings."""

    model_class: type[PreTrainedModel]
    build_config: Callable[[TinyShape, Qwen2Tokenizer], PretrainedConfig]
    build_processor: Callable[[TinyShape, Qwen2Tokenizer], ProcessorMixin]
    shape: TinyShape = TinyShape()
    special_tokens: tuple[str, ...] = vocabulary.SPECIAL_TOKENS
    chat_template: str = vocabulary.CHAT_TEMPLATE


def build_tokenizer(
    special_tokens: Sequence[str] = vocabulary.SPECIAL_TOKENS, chat_template: str = vocabulary.CHAT_TEMPLATE
) -> Qwen2Tokenizer:
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
        extra_special_tokens=list(special_tokens),
        model_max_length=TinyShape.max_positions,
    )
    plain = [*vocabulary.TAGS, *vocabulary.SENTENCES, vocabulary.COORDINATE_SEPARATOR]
    plain += [str(integer) for integer in range(vocabulary.LARGEST_INTEGER + 1)]
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in plain])
    tokenizer.chat_template = chat_template
    return tokenizer


def text_settings(shape: TinyShape, tokenizer: Qwen2Tokenizer, **rope: Any) -> dict[str, Any]:
    """Settings of a Qwen2 language model; `rope` are the family's own of its rotary positions."""
    token_id = tokenizer.convert_tokens_to_ids
    return {
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
            **rope,
        },
        "tie_word_embeddings": True,
        "bos_token_id": token_id(vocabulary.END_OF_TEXT),
        "eos_token_id": token_id(vocabulary.TURN_END),
        "pad_token_id": token_id(vocabulary.END_OF_TEXT),
    }
