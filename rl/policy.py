"""The policy: a Hugging Face vision-language model that returns the logprobs of given answers.

One module is the root of FSDP2, so every parameter is gathered where it is used, the head included. Logits exist only
for answer tokens and only a chunk at a time: at a 150k vocabulary they would be the largest tensor of a step.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, cast

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from rl import group_attention
from rl.config import LoraConfig, ModelConfig
from rl.layout import ModelInputs, RopeIndex
from rl.quantization import load_quantized

if TYPE_CHECKING:
    from rl.attention_hook import BoxRecord
    from rl.sequence_parallel import SequenceParallel

NEVER = -1e30  # a banned token's logit: its share is 0, and 0 × −∞ would be no number
LOGITS_CHUNK = 2048  # answer tokens whose logits exist at once: 1.2 GB in float32 at a 152k vocabulary


class Policy(nn.Module):
    """`forward(inputs)` → (logprobs [K], entropy [K]) of the K answer tokens that `inputs` names.

    `banned` are token ids the sampler never draws (image placeholders): they leave the softmax here too, so that sampler
    and learner speak of one distribution. A `box_record` takes the attention of the chosen layers down on the way. With a
    `sequence`, a group of ranks computes the same inputs together and every one of them returns the whole.
    """

    sequence: SequenceParallel | None = None

    def __init__(self, model: PreTrainedModel, banned: tuple[int, ...]) -> None:
        super().__init__()
        self.model = model
        self.banned = banned
        group_attention.install(self.base)

    @property
    def base(self) -> PreTrainedModel:
        """The Hugging Face model itself, under LoRA too."""
        return cast(PreTrainedModel, self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model)

    @property
    def rope_index(self) -> RopeIndex | None:
        """The family's multi-axis rotary positions, or None where positions are plain 0, 1, 2, …"""
        return cast("RopeIndex | None", getattr(self.base.model, "get_rope_index", None))

    def forward(self, inputs: ModelInputs, temperature: float, box_record: BoxRecord | None = None) -> tuple[Tensor, Tensor]:
        base = self.base
        types = {} if self.rope_index is None else {"mm_token_type_ids": inputs.mm_token_type_ids}
        observer = {} if box_record is None else {"box_record": box_record}
        groups = {} if inputs.groups is None else {"groups": inputs.groups}
        hidden_BLD = base.model(
            input_ids=inputs.input_ids,
            attention_mask=None,
            position_ids=inputs.position_ids,
            use_cache=False,
            **inputs.vision,
            **types,
            **observer,
            **groups,
        ).last_hidden_state
        hidden_KD = hidden_BLD.flatten(0, 1)[inputs.predictor_K]
        scores = partial(self._scores, temperature)
        if self.sequence is None:
            return scores(hidden_KD, inputs.target_K)
        return self.sequence.shared_out(scores, hidden_KD, inputs.target_K)

    def _scores(self, temperature: float, hidden_KD: Tensor, target_K: Tensor) -> tuple[Tensor, Tensor]:
        chunks = [
            checkpoint(self._score, hidden, target, temperature, use_reentrant=False)
            for hidden, target in zip(hidden_KD.split(LOGITS_CHUNK), target_K.split(LOGITS_CHUNK), strict=True)
        ]
        return torch.cat([logprobs for logprobs, _ in chunks]), torch.cat([entropy for _, entropy in chunks])

    def _score(self, hidden_KD: Tensor, target_K: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        # Not as a module: ranks score different numbers of chunks, and ZeRO-3 holds them to one sequence of module calls.
        logits_KV = nn.functional.linear(hidden_KD, self.base.lm_head.weight)
        logits_KV = logits_KV.to(torch.promote_types(logits_KV.dtype, torch.float32)) / temperature
        if self.banned:
            logits_KV[:, list(self.banned)] = NEVER
        lse_K = logits_KV.logsumexp(-1)
        entropy_K = lse_K - ((logits_KV - lse_K[:, None]).exp() * logits_KV).sum(-1)
        chosen_K = logits_KV.gather(-1, target_K[:, None])[:, 0]
        return chosen_K.masked_fill(chosen_K == NEVER, -torch.inf) - lse_K, entropy_K


def build_model(
    config: ModelConfig, dtype: torch.dtype, compute_dtype: torch.dtype, device: torch.device, with_weights: bool = True
) -> PreTrainedModel:
    """The model of `config.path` in training mode; on `meta`, weightless, where another rank sends them.

    In that mode `lora.dropout` acts whatever is computed, logprobs too; published models have no dropout of their own.
    A quantized base computes in `compute_dtype` and is loaded on `device` by every rank; everything else is in `dtype`.
    """
    if config.quantization:
        model = load_quantized(config, compute_dtype, device)
    elif with_weights:
        model = AutoModelForImageTextToText.from_pretrained(
            config.path, dtype=dtype, attn_implementation=config.attention, low_cpu_mem_usage=True
        )
    else:
        with torch.device("meta"):
            hf_config = AutoConfig.from_pretrained(config.path)
            model = AutoModelForImageTextToText.from_config(hf_config, dtype=dtype, attn_implementation=config.attention)
    model.config.use_cache = False
    model.train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.is_floating_point() and not (config.freeze_vision and is_vision(name)))
    if config.lora.rank:
        model = get_peft_model(model, peft_config(config.lora), autocast_adapter_dtype=False)
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.data = parameter.data.to(dtype)
    return cast(PreTrainedModel, model)


def is_vision(name: str) -> bool:
    """Whether a parameter belongs to the vision tower, its projector, or an image's end marks."""
    return any(part in name for part in (".visual.", ".vision_tower.", ".multi_modal_projector.", ".image_newline"))


def peft_config(lora: LoraConfig) -> PeftLoraConfig:
    """LoRA on the named linear layers of the language model only."""
    targets = rf".*language_model\..*\.({'|'.join(lora.targets)})"
    return PeftLoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, task_type="CAUSAL_LM"
    )


def hf_name(name: str) -> str | None:
    """The Hugging Face name of a parameter of `Policy`, or None for a LoRA matrix.

    >>> hf_name("model.base_model.model.model.language_model.layers.0.self_attn.q_proj.base_layer.weight")
    'model.language_model.layers.0.self_attn.q_proj.weight'
    """
    if ".lora_" in name:
        return None
    return name.removeprefix("model.").removeprefix("base_model.model.").replace(".base_layer.", ".")
