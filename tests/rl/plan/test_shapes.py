"""Shapes of models by arithmetic, compared parameter by parameter with what transformers and PEFT really build on `meta`."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText

from rl.config import LoraConfig, ModelConfig
from rl.engines.fsdp import blocks
from rl.plan.shapes import ModelShape, shape_of, shipped
from rl.policy import Policy, build_model

TINY = Path("recipes/locus/tiny_model")
# Published counts, in billions to the last printed digit.
PUBLISHED = {
    "Qwen/Qwen2-VL-2B-Instruct": 2.21,
    "Qwen/Qwen2-VL-7B-Instruct": 8.29,
    "Qwen/Qwen2-VL-72B-Instruct": 73.4,
    "Qwen/Qwen2.5-VL-3B-Instruct": 3.75,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8.29,
    "Qwen/Qwen2.5-VL-32B-Instruct": 33.5,
    "Qwen/Qwen2.5-VL-72B-Instruct": 73.4,
    "Qwen/Qwen3-VL-2B-Instruct": 2.13,
    "Qwen/Qwen3-VL-4B-Thinking": 4.44,
    "Qwen/Qwen3-VL-8B-Instruct": 8.77,
    "Qwen/Qwen3-VL-32B-Thinking": 33.4,
    "XiaomiMiMo/MiMo-VL-7B-RL": 8.31,
    "llava-hf/llava-onevision-qwen2-0.5b-ov-hf": 0.89,
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": 8.03,
    "llava-hf/llava-onevision-qwen2-72b-ov-hf": 73.2,
}
FILES = sorted(set(shipped().values()))


def folder_of(fact: Path, tmp_path: Path) -> str:
    """A model folder with nothing but the fact's config.json, for transformers to read."""
    (tmp_path / "config.json").write_text(json.dumps(json.loads(fact.read_text())["config"]))
    return str(tmp_path)


def on_meta(config: ModelConfig) -> Policy:
    return Policy(build_model(config, torch.float32, torch.bfloat16, torch.device("cpu"), with_weights=False), ())


def arithmetic(shape: ModelShape) -> Counter[tuple[str, tuple[int, ...], bool]]:
    found: Counter[tuple[str, tuple[int, ...], bool]] = Counter()
    for block in shape.blocks:
        for each in block.parameters:
            found[each.name.rsplit(".", 1)[-1], each.shape, each.trainable] += block.count
    return found


def built(model: nn.Module) -> Counter[tuple[str, tuple[int, ...], bool]]:
    names = ((name.replace(".default.weight", ""), value) for name, value in model.named_parameters())
    return Counter((name.rsplit(".", 1)[-1], tuple(value.shape), value.requires_grad) for name, value in names)


@pytest.mark.parametrize("fact", FILES, ids=lambda path: path.stem)
def test_every_parameter_of_every_shipped_config_is_as_transformers_builds_it(fact: Path, tmp_path: Path) -> None:
    config = ModelConfig(path=folder_of(fact, tmp_path))
    shape, policy = shape_of(config), on_meta(config)
    assert arithmetic(shape) == built(policy)
    assert shape.tied == (policy.base.lm_head.weight is policy.base.get_input_embeddings().weight)
    assert sum(block.count for block in shape.blocks if block.sharded_alone) == len(list(blocks(policy.base)))
    text = policy.base.get_decoder().config
    heads = (text.num_attention_heads, text.num_key_value_heads)
    language = shape.language
    assert (language.heads, language.kv_heads) == heads
    assert language.head_dim == policy.base.get_decoder().layers[0].self_attn.head_dim


@pytest.mark.parametrize("model", PUBLISHED)
def test_parameter_counts_are_the_published_ones(model: str) -> None:
    digits = len(str(PUBLISHED[model]).split(".")[1])
    assert round(shape_of(ModelConfig(path=model)).numel_base / 1e9, digits) == PUBLISHED[model]


def test_lora_matrices_stand_where_peft_puts_them(tmp_path: Path) -> None:
    for fact in (FILES[1], shipped()["Qwen/Qwen3-VL-4B-Instruct"], shipped()["llava-hf/llava-onevision-qwen2-7b-ov-hf"]):
        config = ModelConfig(path=folder_of(fact, tmp_path), lora=LoraConfig(rank=8, targets=["q_proj", "down_proj"]))
        assert arithmetic(shape_of(config)) == built(on_meta(config))


def test_a_frozen_image_tower_trains_the_language_model_alone(tmp_path: Path) -> None:
    for model in ("Qwen/Qwen2.5-VL-3B-Instruct", "llava-hf/llava-onevision-qwen2-7b-ov-hf"):
        config = ModelConfig(path=folder_of(shipped()[model], tmp_path), freeze_vision=True)
        assert arithmetic(shape_of(config)) == built(on_meta(config))


def test_a_folder_as_transformers_saves_it_is_read_too() -> None:
    shape = shape_of(ModelConfig(path=str(TINY)))
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(TINY))
    assert shape.numel == sum(parameter.numel() for parameter in model.parameters())
    assert shape.name == "tiny_model"


def test_an_unknown_model_names_the_nearest_and_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape("did you mean Qwen/Qwen2-VL-7B-Instruct?")):
        shape_of(ModelConfig(path="Qwen/Qwen2-VL-7B-Instuct"))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="model_type='bert'"):
        shape_of(ModelConfig(path=str(tmp_path)))
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_vl", "hidden_size": 64}')
    with pytest.raises(ValueError, match="no field 'num_attention_heads'"):
        shape_of(ModelConfig(path=str(tmp_path)))
