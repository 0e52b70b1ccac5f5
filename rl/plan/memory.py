"""What every role of a recipe holds on a GPU, item by item with its arithmetic, and what a node's host memory must hold."""

from __future__ import annotations

from dataclasses import dataclass

from rl.config import Recipe
from rl.plan.shapes import ModelShape
from rl.plan.workload import Workload


@dataclass(frozen=True, slots=True)
class MemoryItem:
    """`how` is one line of arithmetic."""

    name: str  # weights | gradients | optimizer | gathered block | activations | logits | kv cache | sync buffers | runtime
    bytes: int
    how: str


@dataclass(frozen=True, slots=True)
class RoleMemory:
    """A GPU of a role, its fullest rank. Roles that share GPUs are one, named `learner+rollout`."""

    role: str
    actors: int
    gpus_per_actor: int
    items: tuple[MemoryItem, ...]

    @property
    def total(self) -> int:
        return sum(item.bytes for item in self.items)


@dataclass(frozen=True, slots=True)
class KvCache:
    """A rollout engine's: bytes of one token on one GPU, bytes of the cache on one GPU, whole sequences it holds at once.

    `sequences` counts the workload's mean prompt and answer; `longest` those of rollout.max_model_len tokens.
    """

    bytes_per_token: int
    bytes: int
    sequences: int
    longest: int


@dataclass(frozen=True, slots=True)
class HostMemory:
    """A node's, summed over what stands on it at once."""

    items: tuple[MemoryItem, ...]

    @property
    def total(self) -> int:
        return sum(item.bytes for item in self.items)


def role_memories(
    recipe: Recipe, shape: ModelShape, workload: Workload, stage: str, device_bytes: int
) -> tuple[RoleMemory, ...]:
    """Every role's GPU in `stage`, at the moment when it holds most."""
    raise NotImplementedError


def kv_cache(recipe: Recipe, shape: ModelShape, workload: Workload, device_bytes: int) -> KvCache:
    """What is left for keys and values on a rollout GPU; `bytes` may be negative, which says how much is missing."""
    raise NotImplementedError


def micro_batch_tokens(recipe: Recipe, workload: Workload, stage: str) -> int:
    """Tokens of the largest forward that a learner rank makes: the recipe's budget, or one group where that is larger."""
    raise NotImplementedError


def host_memory(recipe: Recipe, shape: ModelShape, nodes: int, gpus_per_node: int) -> HostMemory:
    """The fullest node: weights on their way through the object store, rank 0's loading, what is offloaded."""
    raise NotImplementedError
