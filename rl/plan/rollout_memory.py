"""What a vLLM rollout engine holds on each of its GPUs: weights, the batch it is profiled with, a KV cache in the rest.

    gpu_memory_utilization × GPU = weights / tensor_parallel + profiled batch + CUDA graphs + KV cache

Matrices and embeddings are cut over the tensor-parallel ranks, norms and biases are whole, key heads that are fewer than
ranks are repeated.
"""

from __future__ import annotations

import math

from rl.config import Recipe
from rl.plan.gpus import Gpu
from rl.plan.learner_memory import RUNTIME_ITEM, receive_buffers
from rl.plan.memory_records import KvCache, MemoryItem
from rl.plan.shapes import ModelShape
from rl.plan.sharding import COMPUTE_BYTES, FLOAT, parameters
from rl.plan.workload import Workload
from rl.sampler_config import LORA_RANKS

# vLLM's default max_num_batched_tokens of its LLM class: twice as many where a GPU has 70 GiB (an A100 excepted).
BATCHED_TOKENS, BATCHED_TOKENS_LARGE, LARGE_GPU = 8192, 16384, 70 << 30
GRAPHS = 1 << 30  # CUDA graphs of the decode batches: assumed


def rollout_items(recipe: Recipe, shape: ModelShape, workload: Workload, gpu: Gpu) -> tuple[MemoryItem, ...]:
    """Of one GPU of a rollout engine that is awake, a publication on its way in."""
    fixed = _fixed(recipe, shape, gpu)
    cache = kv_cache(recipe, shape, workload, gpu)
    told = f"{cache.bytes_per_token / 1024:.0f} KiB a token, {cache.sequences} sequences of the workload's mean"
    return (*fixed, MemoryItem("kv cache", max(0, cache.bytes), told), receive_buffers(recipe, shape), RUNTIME_ITEM)


def kv_cache(recipe: Recipe, shape: ModelShape, workload: Workload, gpu: Gpu) -> KvCache:
    """What is left for keys and values on a rollout GPU; `bytes` may be negative, which says how much is missing."""
    rollout, language = recipe.rollout, shape.language
    heads = math.ceil(language.kv_heads / rollout.tensor_parallel)
    each = 2 * language.layers * heads * language.head_dim * COMPUTE_BYTES[rollout.dtype]
    if rollout.kv_cache_mib is not None:
        left = rollout.kv_cache_mib << 20
    else:
        taken = sum(item.bytes for item in _fixed(recipe, shape, gpu)) + RUNTIME_ITEM.bytes
        left = int(rollout.gpu_memory_utilization * gpu.memory_bytes) - taken
    tokens = max(0, left) // each
    mean = max(1.0, workload.prompt_tokens + workload.answer_tokens)
    return KvCache(each, left, int(tokens // mean), tokens // rollout.max_model_len)


def weight_bytes(recipe: Recipe, shape: ModelShape) -> int:
    """On one GPU: the base in the rollout's dtype, and room for an adapter where adapters are what is published."""
    ranks, size = recipe.rollout.tensor_parallel, COMPUTE_BYTES[recipe.rollout.dtype]
    base = sum(
        math.ceil(each.numel / ranks) if len(each.shape) > 1 else each.numel
        for each in parameters(shape, lambda each: not each.adapter)
    )
    lora = recipe.model.lora
    if not (lora.rank and lora.sync == "adapter"):
        return size * base
    room = next(rank for rank in LORA_RANKS if rank >= lora.rank)
    return size * (base + math.ceil(shape.numel_adapter / lora.rank * room / ranks))


def _fixed(recipe: Recipe, shape: ModelShape, gpu: Gpu) -> tuple[MemoryItem, ...]:
    rollout = recipe.rollout
    profiled = _profiled(recipe, shape, gpu)
    graphs = 0 if rollout.enforce_eager else GRAPHS
    return (
        MemoryItem("weights", weight_bytes(recipe, shape), f"{rollout.dtype}, tensor parallel {rollout.tensor_parallel}"),
        MemoryItem("activations", profiled + graphs, "the batch vLLM profiles with, and its CUDA graphs (assumed)"),
    )


def _profiled(recipe: Recipe, shape: ModelShape, gpu: Gpu) -> int:
    """The larger of a full batch through a block and of its images through the tower; then the logits of every sequence."""
    large = gpu.memory_bytes >= LARGE_GPU and "a100" not in gpu.name.lower()
    batched = BATCHED_TOKENS_LARGE if large else BATCHED_TOKENS
    size, ranks = COMPUTE_BYTES[recipe.rollout.dtype], recipe.rollout.tensor_parallel
    language, vision = shape.language, shape.vision
    block = batched * size * (3 * language.hidden + 3 * language.intermediate // ranks)
    tower = batched * vision.merge**2 * size * (6 * vision.hidden + 3 * vision.intermediate // ranks)
    logits = 3 * FLOAT * recipe.rollout.max_num_seqs * language.vocab
    return max(block, tower + batched * size * language.hidden, logits)
