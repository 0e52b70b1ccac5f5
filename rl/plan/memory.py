"""What every role of a recipe holds on a GPU, item by item with its arithmetic, and what a node's host memory must hold.

disaggregated   every role on GPUs of its own
colocated       learner, reference and rollouts take turns on the same GPUs: the fullest of them, beside what the others
                leave there, and the hand-over, when the learner sends and the rollouts hold weights without a KV cache
"""

from __future__ import annotations

import math

from rl.config import Recipe
from rl.plan.gpus import Gpu
from rl.plan.learner_memory import (
    RUNTIME,
    host_shard,
    learner_items,
    publishing_items,
    receive_buffers,
    reference_items,
    reference_shard,
    whole_shard,
)
from rl.plan.memory_records import HostMemory as HostMemory
from rl.plan.memory_records import KvCache as KvCache
from rl.plan.memory_records import MemoryItem as MemoryItem
from rl.plan.memory_records import RoleMemory as RoleMemory
from rl.plan.memory_records import fullest, gib
from rl.plan.rollout_memory import kv_cache as kv_cache
from rl.plan.rollout_memory import rollout_items, weight_bytes
from rl.plan.shapes import ModelShape
from rl.plan.sharding import COMPUTE_BYTES, FLOAT
from rl.plan.workload import Workload

# A Python process with torch, transformers or vLLM, and Ray's own on every node: assumed; without CUDA measured, at 0.7 GiB
# a learner rank and 1.1 a vLLM engine.
PROCESS, PROCESS_WITHOUT_CUDA = 3 << 29, 1 << 30


def role_memories(recipe: Recipe, shape: ModelShape, workload: Workload, stage: str, gpu: Gpu) -> tuple[RoleMemory, ...]:
    """Every role's GPU in `stage`, at the moment when it holds most."""
    roles = [
        RoleMemory("learner", recipe.learner.ranks, 1, learner_items(recipe, shape, workload, stage)),
        RoleMemory(
            "rollout",
            recipe.rollout.actors,
            recipe.rollout.tensor_parallel,
            rollout_items(recipe, shape, workload, gpu),
        ),
    ]
    if has_reference(recipe, stage):
        items = reference_items(recipe, shape, workload, stage)
        roles.insert(1, RoleMemory("reference", recipe.reference.ranks, 1, items))
    if recipe.cluster.placement == "colocated":
        return (_together(recipe, shape, roles),)
    return tuple(roles)


def has_reference(recipe: Recipe, stage: str) -> bool:
    """Whether `stage` holds its policy to a frozen one on GPUs of that one's own."""
    return stage == "grpo" and recipe.algorithm.kl_coefficient != 0 and recipe.reference.placement == "actor"


def _together(recipe: Recipe, shape: ModelShape, roles: list[RoleMemory]) -> RoleMemory:
    others = (len(roles) - 1) * RUNTIME
    left = MemoryItem("runtime", others, f"what {len(roles) - 1} other roles leave on the GPU while they wait: assumed")
    weights = MemoryItem("weights", weight_bytes(recipe, shape), "the rollout's, while a publication arrives")
    moments = [(*role.items, left) for role in roles]
    moments.append((*publishing_items(recipe, shape), weights, receive_buffers(recipe, shape), left))
    each = recipe.rollout.tensor_parallel
    gpus = max(role.actors * role.gpus_per_actor for role in roles)
    return RoleMemory("+".join(role.role for role in roles), math.ceil(gpus / each), each, fullest(moments))


def host_memory(recipe: Recipe, shape: ModelShape, nodes: int, gpus_per_node: int) -> HostMemory:
    """The fullest node, the first: rank 0 loads there. Without GPUs a node holds what GPUs would."""
    ranks, actors = _on_a_node(recipe, nodes, gpus_per_node)
    reference = any(has_reference(recipe, stage) for stage in recipe.stages)
    colocated = recipe.cluster.placement == "colocated"
    # Colocated roles start on the same GPUs; else a reference stands on the learner's node where both have room there.
    together = gpus_per_node == 0 or colocated or recipe.learner.ranks < gpus_per_node
    groups = 1 + (reference and together)
    each = PROCESS if gpus_per_node else PROCESS_WITHOUT_CUDA
    items = [
        MemoryItem("processes", each * (ranks + actors + 1), f"{ranks} learner and reference ranks, {actors} rollouts"),
        MemoryItem("loading", groups * _loading(recipe, shape), f"rank 0 of {groups} groups reads the checkpoint at once"),
        MemoryItem("object store", _object_store(recipe), "Ray's, for samples and what is published through it"),
    ]
    away = host_shard(recipe, shape)
    if colocated:
        away = max(away, whole_shard(recipe, shape))
        items += _asleep(recipe, shape, actors, gpus_per_node)
    if away:
        items.append(
            MemoryItem("offloaded", away * min(ranks, recipe.learner.ranks), "parameters and optimizer of its ranks")
        )
    if gpus_per_node == 0:
        items.append(_without_gpus(recipe, shape, actors))
    return HostMemory(tuple(items))


def _asleep(recipe: Recipe, shape: ModelShape, actors: int, gpus_per_node: int) -> list[MemoryItem]:
    """What waits on the host beside the learner's: a reference's shards, and bases that adapters are published for."""
    items = []
    if any(has_reference(recipe, stage) for stage in recipe.stages):
        ranks = recipe.reference.ranks
        here = min(ranks, gpus_per_node) if gpus_per_node else ranks
        items.append(MemoryItem("reference", here * reference_shard(recipe, shape), "parameters of its ranks"))
    lora = recipe.model.lora
    if lora.rank and lora.sync == "adapter" and gpus_per_node:
        held = actors * recipe.rollout.tensor_parallel * weight_bytes(recipe, shape)
        items.append(MemoryItem("sleeping samplers", held, "bases that stay while samplers sleep"))
    return items


def _on_a_node(recipe: Recipe, nodes: int, gpus_per_node: int) -> tuple[int, int]:
    """Learner and reference ranks, and rollout actors, of the fullest node."""
    held = recipe.reference.ranks if any(has_reference(recipe, stage) for stage in recipe.stages) else 0
    ranks, actors = recipe.learner.ranks + held, recipe.rollout.actors
    if gpus_per_node == 0:
        return ranks, actors
    return min(ranks, 2 * gpus_per_node), min(math.ceil(actors / nodes), gpus_per_node)


def _loading(recipe: Recipe, shape: ModelShape) -> int:
    """The whole model in what the engine keeps it in, once; packed bases are read shard by shard of the checkpoint."""
    if recipe.model.quantization:
        return 8 << 30
    size = COMPUTE_BYTES[recipe.learner.dtype] if recipe.learner.engine == "deepspeed" else FLOAT
    return size * shape.numel


def _object_store(recipe: Recipe) -> int:
    return recipe.cluster.local_object_store_mb << 20


def _without_gpus(recipe: Recipe, shape: ModelShape, actors: int) -> MemoryItem:
    shards = recipe.learner.ranks * (whole_shard(recipe, shape) + FLOAT * shape.numel_trainable // recipe.learner.ranks)
    samplers = actors * (weight_bytes(recipe, shape) + ((recipe.rollout.kv_cache_mib or 4096) << 20))
    told = f"learner shards {gib(shards)}, rollout weights and KV cache {gib(samplers)}"
    return MemoryItem("models", shards + samplers, told)
