"""Decoders of their real width on fake tensors: what a forward and backward of thousands of tokens would hold, unpaid."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForImageTextToText

from rl.config import ModelConfig
from rl.group_attention import Groups, GroupSpan, install
from rl.plan.activations import Forward, bias_elements, language_block
from rl.plan.shapes import shape_of, shipped
from tests.rl.plan.live_bytes import LiveBytes

DTYPE = torch.bfloat16


def fake_decoder_peak(model: str, rows: int, length: int, layers: int, checkpointed: bool = True) -> tuple[int, int]:
    """(bytes held by `layers` of the decoder of `model` at their fullest, those predicted), biases included.

    `rows` groups of `length` tokens in one row, half of them prompt, half four answers. Beside activations, the gradient
    that the widest matrix gets before it is added to the one it has.
    """
    config = json.loads(shipped()[model].read_text())["config"]
    text = config.get("text_config", config)
    text["num_hidden_layers"], config["vision_config"]["depth"] = layers, 1
    with FakeTensorMode():
        found = _peak(_decoder(config, checkpointed), rows, length)
    shape = shape_of(ModelConfig(path=model)).language
    bias = rows * bias_elements(length - 4 * (length // 8), length // 8, 4)
    forward = Forward(rows, length, 0, 0, DTYPE.itemsize, bias=bias)
    block = language_block(shape, forward)
    kept = layers * block.kept(checkpointed) + block.working + checkpointed * block.saved
    tokens = rows * length * DTYPE.itemsize
    inputs = forward.bias * DTYPE.itemsize + 2 * shape.rotary_axes * tokens * shape.head_dim
    gradient = DTYPE.itemsize * shape.intermediate * shape.hidden
    return found, kept + inputs + tokens * shape.hidden + gradient


def _decoder(config: dict[str, Any], checkpointed: bool) -> nn.Module:
    model = AutoModelForImageTextToText.from_config(
        AutoConfig.for_model(**config), dtype=DTYPE, attn_implementation="sdpa"
    ).train()
    if checkpointed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    install(model)
    decoder: nn.Module = model.get_decoder()
    return decoder


def _peak(decoder: nn.Module, rows: int, length: int) -> int:
    hidden = decoder.config.hidden_size
    inputs = torch.randn(1, rows * length, hidden, dtype=DTYPE, requires_grad=True)
    held = [*decoder.parameters(), inputs]
    for each in held:
        each.grad = torch.empty_like(each)
    answer = length // 8
    spans = (GroupSpan(row * length, length - 4 * answer, (answer,) * 4) for row in range(rows))
    positions = torch.zeros(3, 1, rows * length, dtype=torch.long)
    with LiveBytes([*held, *(each.grad for each in held if each.grad is not None), *decoder.buffers()]) as live:
        before = live.now - inputs.nbytes
        output = decoder(
            inputs_embeds=inputs, attention_mask=None, position_ids=positions, use_cache=False, groups=Groups(tuple(spans))
        )
        output.last_hidden_state.sum().backward()
    return live.peak - before
