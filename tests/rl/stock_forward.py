"""A stock Hugging Face model on one encoded prompt: what ours is compared with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from data.sample import Sample
from rl.prompting import EncodedPrompt, PromptEncoder


def forward_inputs(prompt: EncodedPrompt, tokens: Sequence[int] = ()) -> dict[str, Tensor]:
    """What a stock model's forward or generate takes of one prompt and the beginning of its answer."""
    input_ids = torch.cat([prompt.input_ids, torch.tensor(tokens, dtype=torch.long)])[None]
    inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), **prompt.vision}
    if "image_grid_thw" in prompt.vision:
        types = torch.cat([prompt.mm_token_type_ids, torch.zeros(len(tokens), dtype=torch.long)])[None]
        inputs["mm_token_type_ids"] = types
    return inputs


@torch.no_grad()
def answer_logits(model: nn.Module, encoder: PromptEncoder, sample: Sample, tokens: Sequence[int]) -> Tensor:
    """[R, V] logits that predict each answer token: one plain forward of prompt and answer."""
    prompt = encoder.encode(sample)
    logits: Tensor = model(**forward_inputs(prompt, tokens)).logits[0]
    return logits[len(prompt.input_ids) - 1 : len(prompt.input_ids) + len(tokens) - 1].float()
