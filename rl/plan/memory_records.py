"""What a memory plan is made of: items with their arithmetic, a role's GPU, a rollout engine's KV cache, a node's host."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MemoryItem:
    """`how` is one line of arithmetic."""

    name: str  # weights | gradients | optimizer | gathered block | activations | logits | kv cache | sync buffers | runtime
    bytes: int
    how: str


@dataclass(frozen=True, slots=True)
class RoleMemory:
    """A GPU of a role, its fullest rank at its fullest moment. Roles that share GPUs are one, named `learner+rollout`."""

    role: str
    actors: int
    gpus_per_actor: int
    items: tuple[MemoryItem, ...]

    @property
    def total(self) -> int:
        return total(self.items)


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
        return total(self.items)


def total(items: tuple[MemoryItem, ...]) -> int:
    return sum(item.bytes for item in items)


def fullest(moments: list[tuple[MemoryItem, ...]]) -> tuple[MemoryItem, ...]:
    """The items of the moment that holds most."""
    return max(moments, key=total)


def gib(size: float) -> str:
    return f"{size / (1 << 30):.3g} GiB"
