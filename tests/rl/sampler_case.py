"""A real vLLM engine in the test's own process, and the Hugging Face forward that it is compared with."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from data.sample import Sample
from rl.config import LoraConfig
from rl.policy import peft_config
from rl.prompting import PromptEncoder
from rl.records import Rollout, RolloutFailure
from rl.sampler_config import SamplerConfig, sampler_env
from tests.rl.stock_forward import answer_logits

os.environ.update(sampler_env("cpu", "."))

import torch._dynamo

# Another test may have imported it before TORCHDYNAMO_DISABLE was set.
torch._dynamo.config.disable = True

from rl.sampler import VllmSampler  # noqa: E402

UNIT = 28 * 28


def sampler_config(model_dir: Path, **changes: Any) -> SamplerConfig:
    """Pixel limits narrower than the tiny processor's own, so that forgetting to hand them on shows."""
    settings: dict[str, Any] = {
        "model": str(model_dir),
        "dtype": "float32",
        "max_model_len": 256,
        "max_images": 2,
        "min_pixels": 2 * UNIT,
        "max_pixels": 10 * UNIT,
        "kv_cache_bytes": 32 << 20,
        "max_num_seqs": 128,
        "enforce_eager": True,
    }
    return SamplerConfig(**{**settings, **changes})


@contextmanager
def running_sampler(config: SamplerConfig) -> Iterator[VllmSampler]:
    set_num_threads = torch.set_num_threads  # vLLM's CPU worker replaces it for the whole process
    sampler = VllmSampler(config)
    try:
        yield sampler
    finally:
        sampler.close()
        torch.set_num_threads = set_num_threads


def rollouts_of(groups: Sequence[Sequence[Rollout | RolloutFailure]]) -> list[Rollout]:
    """All rollouts; a failure fails the test with its reason."""
    flat = [rollout for group in groups for rollout in group]
    assert all(isinstance(rollout, Rollout) for rollout in flat), [r for r in flat if isinstance(r, RolloutFailure)]
    return [rollout for rollout in flat if isinstance(rollout, Rollout)]


def largest_mismatch(
    model: nn.Module,
    encoder: PromptEncoder,
    samples: Sequence[Sample],
    groups: Sequence[Sequence[Rollout | RolloutFailure]],
    temperature: float = 1.0,
) -> float:
    """max |Δ logprob| between the sampler and softmax(logits / temperature) with the banned ids at −inf."""
    by_id = {sample.id: sample for sample in samples}
    worst = 0.0
    for rollout in rollouts_of(groups):
        logits = answer_logits(model, encoder, by_id[rollout.prompt_id], rollout.tokens) / temperature
        logits[:, list(encoder.banned_token_ids)] = -torch.inf
        expected = logits.log_softmax(-1).gather(1, torch.tensor(rollout.tokens)[:, None])[:, 0]
        worst = max(worst, float((expected - torch.tensor(rollout.logprobs)).abs().max()))
    return worst


def perturbed(model: nn.Module, part: str = "", seed: int = 1) -> nn.Module:
    """A copy whose parameters named like `part` moved by a tenth of their size."""
    moved = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in moved.named_parameters():
            if part in name:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(0.1 * noise * parameter.abs().mean())
    return moved


def adapted(model_dir: Path, seed: int, rank: int = 4) -> PeftModel:
    """The base under an adapter as the learner builds it, with a B that is not zero."""
    torch.manual_seed(seed)
    base = AutoModelForImageTextToText.from_pretrained(model_dir, dtype=torch.float32)
    model = get_peft_model(base, peft_config(LoraConfig(rank=rank, alpha=2 * rank)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(0, 0.05)
    return model.eval()


def matrices(model: PeftModel) -> dict[str, Tensor]:
    return {name.replace(".default.", "."): tensor for name, tensor in model.state_dict().items() if ".lora_" in name}


def config_of(model: PeftModel) -> dict[str, Any]:
    return dict(model.peft_config["default"].to_dict())
