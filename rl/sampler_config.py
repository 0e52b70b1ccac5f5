"""How a vLLM sampler is built, and the environment its process needs. Plain types: imports no vLLM, no torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Device = Literal["cpu", "gpu"]
# vLLM reserves room for adapters in these sizes only.
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


@dataclass(frozen=True, slots=True)
class SamplerConfig:
    """vLLM's engine arguments that a run decides.

    `model` is a Hugging Face folder or hub id. The KV cache takes `kv_cache_bytes` where given, else the share
    `gpu_memory_utilization` of the device. `max_lora_rank` 0 builds an engine without adapters. `seed` seeds draws that
    have no seed of their own. `sleeps`: its GPU's memory can be given up and taken again.
    """

    model: str
    dtype: str
    max_model_len: int
    max_images: int
    min_pixels: int | None = None
    max_pixels: int | None = None
    kv_cache_bytes: int | None = None
    gpu_memory_utilization: float = 0.85
    max_num_seqs: int = 256
    tensor_parallel_size: int = 1
    enforce_eager: bool = False
    enable_prefix_caching: bool = True
    max_lora_rank: int = 0
    seed: int = 0
    sleeps: bool = False


def sampler_env(device: Device, model: str) -> dict[str, str]:
    """Environment variables that must be set before vLLM is imported: a Ray actor's runtime_env, or this process's own.

    One process a sampler (no engine subprocess: on CPU each costs 2 GiB and seconds). A model folder on disk needs no hub.
    On CPU vLLM warns at every step about threads it pinned itself, hence the log level; a VLLM_LOGGING_LEVEL of the user's
    own wins.
    """
    env = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR" if device == "cpu" else "WARNING"),
    }
    if Path(model).is_dir():
        env["HF_HUB_OFFLINE"] = "1"
    if device == "cpu":
        env |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "TORCHDYNAMO_DISABLE": "1"}
        env["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    return env
