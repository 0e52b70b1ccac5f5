"""Models of chosen sizes with random weights, inputs of chosen lengths, and what their forward and backward really hold."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft import get_peft_model
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import AutoConfig, AutoModelForImageTextToText

from rl.config import LoraConfig, ModelConfig
from rl.layout import ModelInputs, lay_out
from rl.plan.activations import Forward, activations, bias_elements, copied_keys
from rl.plan.shapes import ModelShape, shape_of
from rl.policy import Policy, peft_config
from rl.prompting import EncodedPrompt
from tests.rl.plan.live_bytes import LiveBytes

IMAGE, WORD, TEMPERATURE = 5, 20, 1.0


@dataclass(frozen=True)
class Case:
    """A model of `family` and one micro-batch: `prompts` of `text` tokens and an image of `grid` × `grid` patches, each with
    `answers` of `answer` tokens."""

    family: str = "qwen2_vl"
    hidden: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    intermediate: int = 1024
    vocab: int = 600
    vision_hidden: int = 128
    vision_layers: int = 2
    prompts: int = 1
    text: int = 200
    grid: int = 16
    answers: int = 4
    answer: int = 50
    layout: str = "shared"
    checkpointed: bool = True
    lora: int = 0
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        return (
            f"{self.family} hidden {self.hidden} × {self.layers}, vocab {self.vocab}, vision {self.vision_hidden} × "
            f"{self.vision_layers}; {self.prompts} × ({self.text} + image {self.grid}² + {self.answers} × {self.answer}), "
            f"{self.layout}, {'checkpointed' if self.checkpointed else 'all kept'}"
            f"{f', LoRA {self.lora}' if self.lora else ''}, {str(self.dtype).removeprefix('torch.')}"
        )


def config_of(case: Case) -> dict[str, Any]:
    """A config.json."""
    text = {
        "hidden_size": case.hidden,
        "intermediate_size": case.intermediate,
        "num_hidden_layers": case.layers,
        "num_attention_heads": case.heads,
        "num_key_value_heads": case.kv_heads,
        "vocab_size": case.vocab,
    }
    marks = {"image_token_id": IMAGE, "video_token_id": 6, "vision_start_token_id": 7, "vision_end_token_id": 8}
    half = case.hidden // case.heads // 2
    section = {"mrope_section": [half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8]}
    qwen = {"num_heads": 4, "depth": case.vision_layers}
    plain = {"hidden_size": case.vision_hidden, "intermediate_size": 3 * case.vision_hidden}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    return {
        "qwen2_vl": {
            "model_type": "qwen2_vl",
            **(text | marks | ids),
            "rope_scaling": {"type": "mrope", **section},
            "vision_config": {**qwen, "embed_dim": case.vision_hidden, "hidden_size": case.hidden},
        },
        "qwen2_5_vl": {
            "model_type": "qwen2_5_vl",
            **(text | marks | ids),
            "rope_scaling": {"type": "mrope", **section},
            "vision_config": {**qwen, **plain, "out_hidden_size": case.hidden, "fullatt_block_indexes": [1]},
        },
        "qwen3_vl": {
            "model_type": "qwen3_vl",
            **marks,
            "text_config": {
                **(text | ids),
                "model_type": "qwen3_vl_text",
                "head_dim": case.hidden // case.heads,
                "rope_scaling": {"rope_type": "default", "mrope_interleaved": True, **section},
            },
            "vision_config": {**qwen, **plain, "out_hidden_size": case.hidden, "deepstack_visual_indexes": [0]},
        },
    }[case.family]


def write_config(case: Case, folder: Path) -> ModelConfig:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_of(case)))
    return ModelConfig(path=str(folder), lora=LoraConfig(rank=case.lora))


def build_policy(case: Case, folder: Path) -> tuple[Policy, ModelShape]:
    """The policy as an engine builds it, and its shape by arithmetic."""
    torch.manual_seed(0)
    model_config = write_config(case, folder)
    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_config(config, dtype=case.dtype, attn_implementation="sdpa").train()
    if case.lora:
        model = get_peft_model(model, peft_config(model_config.lora), autocast_adapter_dtype=False)
    policy = Policy(model, ())
    if case.checkpointed:
        policy.base.gradient_checkpointing_enable({"use_reentrant": False})
    return policy, shape_of(model_config)


def inputs_of(case: Case, policy: Policy) -> ModelInputs:
    merged = case.grid**2 // 4
    ids = torch.cat([torch.full((case.text,), WORD), torch.full((merged,), IMAGE)])
    config = policy.base.config.vision_config
    pixels = torch.randn(case.grid**2, config.in_channels * config.temporal_patch_size * config.patch_size**2)
    vision = {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, case.grid, case.grid]])}
    prompts = [
        EncodedPrompt(ids, torch.zeros(len(ids), dtype=torch.int16), (ids == IMAGE).long(), vision)
        for _ in range(case.prompts)
    ]
    shape = (case.prompts, case.answers, case.answer)
    return lay_out(prompts, torch.full(shape, WORD), torch.ones(shape), policy.rope_index, case.layout)


def forward_of(inputs: ModelInputs, dtype: torch.dtype) -> Forward:
    rows, length = inputs.input_ids.shape
    patches = len(inputs.vision["pixel_values"])
    spans = () if inputs.groups is None else inputs.groups.spans
    answers = len(inputs.target_K)
    each = [(span.prompt, span.answers[0], len(span.answers)) for span in spans]
    bias, copied = sum(bias_elements(*group) for group in set(each)), sum(copied_keys(*group) for group in each)
    groups = max(1, len(spans))
    return Forward(max(rows, groups), length // groups, answers, patches, dtype.itemsize, bool(spans), bias, copied)


def tensors_of(inputs: ModelInputs) -> list[Tensor]:
    return [*(each for each in vars(inputs).values() if isinstance(each, Tensor)), *inputs.vision.values()]


def step(policy: Policy, inputs: ModelInputs) -> None:
    """A forward and a backward whose loss takes no gradient of the entropy, as without an entropy term."""
    logprobs, entropy = policy(inputs, TEMPERATURE)
    del entropy
    logprobs.sum().backward()


def measured(case: Case, folder: Path) -> tuple[int, int]:
    """(peak bytes of a forward and backward, those that were predicted), parameters and their gradients left out."""
    policy, shape = build_policy(case, folder)
    inputs = inputs_of(case, policy)
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in policy.parameters() if parameter.grad is not None]
    gc.collect()
    with LiveBytes([*policy.parameters(), *policy.buffers(), *gradients]) as live:
        before = live.now
        for tensor in tensors_of(inputs):
            live.see(tensor)
        step(policy, inputs)
    found = activations(shape, forward_of(inputs, case.dtype), case.checkpointed)
    return live.peak - before, found.peak


@contextmanager
def fake_group(ranks: int, rank: int) -> Iterator[None]:
    """A process group of `ranks` whose collectives do nothing; DeepSpeed, which has groups of its own, may end it itself."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=ranks)
    try:
        yield
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


CASES = [
    Case(),
    Case(checkpointed=False),
    Case(layers=8, hidden=384, heads=6, intermediate=1536, text=400, answers=8, answer=60),
    Case(layers=8, hidden=384, heads=6, intermediate=1536, text=400, answers=8, answer=60, checkpointed=False),
    Case(layers=8, hidden=384, heads=6, intermediate=1536, text=400, answers=8, answer=60, lora=8),
    Case(layers=4, lora=4, checkpointed=False),
    Case(prompts=3, layout="plain"),
    Case(vocab=8000, answer=300, intermediate=512),
    Case(layers=2, vision_hidden=256, vision_layers=4, grid=40, answer=10, intermediate=512),
    Case(layers=2, vision_hidden=256, vision_layers=4, grid=40, answer=10, intermediate=512, checkpointed=False),
    Case(family="qwen2_5_vl"),
    Case(family="qwen2_5_vl", layers=2, vision_hidden=256, grid=40, answer=10, intermediate=512),
    Case(family="qwen3_vl"),
    Case(family="qwen3_vl", layers=2, vision_hidden=256, grid=40, answer=10, intermediate=512),
    Case(dtype=torch.bfloat16),
    Case(dtype=torch.bfloat16, checkpointed=False),
]
SMALL = replace(CASES[0], layers=2)
