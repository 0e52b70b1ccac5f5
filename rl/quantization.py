"""QLoRA's base: linear layers of the language model in 4 bits through bitsandbytes, and back for whoever samples from them.

The policy that is trained *is* the 4-bit base with its adapter. So samplers and exports get the base dequantised: bf16
weights that compute what the learner computes, not the checkpoint the base was quantised from.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig, PreTrainedModel

if TYPE_CHECKING:
    from rl.config import ModelConfig

# Vision towers, their projectors and the head stay as they are: small, and sensitive.
_KEPT = ["lm_head", "model.visual", "model.vision_tower", "model.multi_modal_projector"]


def load_quantized(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The model of `config.path` with a 4-bit base (`nf4` or `fp4`, double quantisation), computing in `dtype`.

    Raises ValueError where bitsandbytes is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(f"model.quantization={config.quantization} needs bitsandbytes: pip install 'sightline[qlora]'")
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=config.quantization,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=_KEPT,
    )
    model = AutoModelForImageTextToText.from_pretrained(
        config.path,
        dtype=dtype,
        attn_implementation=config.attention,
        quantization_config=quantization,
        device_map={"": device},
    )
    return cast(PreTrainedModel, model)


def is_quantized(parameter: Tensor) -> bool:
    """Whether bitsandbytes holds this parameter packed."""
    return type(parameter).__name__ == "Params4bit"


def full_precision(parameter: Tensor) -> Tensor:
    """A copy of a parameter; a packed one is dequantised into its compute dtype and its own shape."""
    if not is_quantized(parameter):
        return parameter.detach().clone()
    from bitsandbytes.functional import dequantize_4bit

    return cast(Tensor, dequantize_4bit(parameter.data, parameter.quant_state))  # type: ignore[attr-defined]
