"""What one rank of a sharded policy holds: exactly, between steps, and beside that while a block is computed.

    fsdp     every parameter cut along its first axis into ⌈rows / ranks⌉ rows a rank, float32; blocks gathered one by one
             in the compute dtype, what is in no block (embedding, head, projector) from the forward to the end of backward
    zero3    every parameter flattened and cut evenly, in the compute dtype; float32 masters of what is trained
    zero2    parameters whole in the compute dtype; gradients and float32 masters end to end, cut evenly
    packed   QLoRA: the base in 4 bits whole on every rank, the adapter as under fsdp

AdamW keeps two moments of what is trained, and gradients are reduced, in float32. Rank 0 is the fullest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from rl.config import LearnerConfig, ModelConfig
from rl.plan.parameters import ParameterBlock, ParameterShape
from rl.plan.shapes import ModelShape

FLOAT = 4
COMPUTE_BYTES = {"float32": 4, "bfloat16": 2}
# bitsandbytes: 4 bits a weight, and with double quantisation 8 bits a block of 64, a float32 a 256 of those.
PACKED_BYTES = 0.5 + 1 / 64 + FLOAT / (64 * 256)
# DeepSpeed's stage3_max_live_parameters and stage3_prefetch_bucket_size, and the reduce bucket of
# rl/engines/deepspeed_config.py, in elements.
ZERO3_LIVE, ZERO3_PREFETCH = 1_000_000_000, 50_000_000
ZERO_BUCKET = 100_000_000
ZERO2_ALIGNMENT = 2  # a flat tensor is padded to this many elements a rank


@dataclass(frozen=True, slots=True)
class Shard:
    """Bytes of a rank between steps: parameters, gradients, and the moments with what masters there are."""

    weights: int
    gradients: int
    optimizer: int


class Sharding(Protocol):
    """How an engine cuts a policy over `ranks`. `compute`: bytes of a number in the compute dtype."""

    @property
    def ranks(self) -> int: ...

    @property
    def compute(self) -> int: ...

    def shard(self, shape: ModelShape, rank: int = 0) -> Shard: ...

    def whole(self, shape: ModelShape) -> int:
        """Gathered parameters that stay from the forward to the end of backward."""

    def gradients(self, shape: ModelShape, adding: bool = False) -> int:
        """Gradients that are whole, or in a bucket, through backward; `adding`: the head gets those of another chunk."""

    def at_block(self, block: ParameterBlock, trains: bool, reducing: bool = False) -> int:
        """Gathered parameters and gradients while a block is computed; `reducing`: the block before it still is reduced."""

    def at_end(self, shape: ModelShape) -> int:
        """The last reduction, when no activations are left, and nothing is gathered any more."""


def fsdp_rows(rows: int, ranks: int, rank: int) -> int:
    """Rows of a parameter's first axis that `rank` holds, as torch.chunk deals them out.

    >>> [fsdp_rows(10, 4, rank) for rank in range(4)]
    [3, 3, 3, 1]
    """
    each = math.ceil(rows / ranks)
    return max(0, min(each, rows - rank * each))


def fsdp_numel(parameter: ParameterShape, ranks: int, rank: int) -> int:
    rows = parameter.shape[0]
    return parameter.numel // rows * fsdp_rows(rows, ranks, rank)


def even_numel(numel: int, ranks: int) -> int:
    """A rank's piece of `numel` elements that are padded to a multiple of `ranks`."""
    return math.ceil(numel / ranks)


def parameters(shape: ModelShape, wanted: Callable[[ParameterShape], bool] = lambda each: True) -> Iterator[ParameterShape]:
    """Every parameter, those of equal blocks as often as there are blocks."""
    for block in shape.blocks:
        chosen = [each for each in block.parameters if wanted(each)]
        for _ in range(block.count):
            yield from chosen


def _trained(each: ParameterShape) -> bool:
    return each.trainable


def _root(shape: ModelShape) -> Iterator[ParameterBlock]:
    return (block for block in shape.blocks if not block.sharded_alone)


def head_numel(shape: ModelShape) -> int:
    """Trained parameters of the layer that scores tokens: the embedding where they are tied."""
    (head,) = shape.of_kind("embedding" if shape.tied else "head")
    return head.numel_trainable


@dataclass(frozen=True, slots=True)
class Fsdp:
    """FSDP2: rank 0's pieces are as large as the padded ones that the other ranks allocate."""

    ranks: int
    compute: int

    def shard(self, shape: ModelShape, rank: int = 0) -> Shard:
        held = sum(fsdp_numel(each, self.ranks, rank) for each in parameters(shape))
        trained = sum(fsdp_numel(each, self.ranks, rank) for each in parameters(shape, _trained))
        return Shard(FLOAT * held, FLOAT * trained, 2 * FLOAT * trained)

    def _padded(self, block: ParameterBlock, trained: bool) -> int:
        chosen = (each for each in block.parameters if each.trainable or not trained)
        return sum(self.ranks * fsdp_numel(each, self.ranks, 0) for each in chosen)

    def whole(self, shape: ModelShape) -> int:
        return self.compute * sum(block.count * self._padded(block, trained=False) for block in _root(shape))

    def gradients(self, shape: ModelShape, adding: bool = False) -> int:
        return self.compute * head_numel(shape) * (1 + adding)

    def at_block(self, block: ParameterBlock, trains: bool, reducing: bool = False) -> int:
        """This block's parameters and the next one's on their way. A block holds most at its MLP, when one matrix has its
        gradient; the gradients of the block before it are on their way in float32."""
        gathered = self.compute * self._padded(block, trained=False) * (1 + (self.ranks > 1))
        largest = max((each.numel for each in block.parameters if each.trainable), default=0)
        return gathered + trains * (self.compute * largest + reducing * FLOAT * self._padded(block, trained=True))

    def at_end(self, shape: ModelShape) -> int:
        """Gradients of all that is in no block, and their float32 copies on the way to their owners."""
        trained = sum(block.count * self._padded(block, trained=True) for block in _root(shape))
        return (self.compute + FLOAT) * trained


@dataclass(frozen=True, slots=True)
class Packed:
    """QLoRA on FSDP2: the base is whole on every rank, in 4 bits where it multiplies, else in the compute dtype."""

    ranks: int
    compute: int

    def shard(self, shape: ModelShape, rank: int = 0) -> Shard:
        base = sum(self._base(each) for each in parameters(shape, lambda each: not each.adapter))
        adapter = sum(fsdp_numel(each, self.ranks, rank) for each in parameters(shape, lambda each: each.adapter))
        return Shard(round(base) + FLOAT * adapter, FLOAT * adapter, 2 * FLOAT * adapter)

    def _base(self, each: ParameterShape) -> float:
        return each.numel * (PACKED_BYTES if each.packed else self.compute)

    def whole(self, shape: ModelShape) -> int:
        return 0

    def gradients(self, shape: ModelShape, adding: bool = False) -> int:
        return 0

    def at_block(self, block: ParameterBlock, trains: bool, reducing: bool = False) -> int:
        """The block's largest matrix unpacked, for forward or backward, and its adapter as under FSDP2."""
        unpacked = max((each.numel for each in block.parameters if each.packed), default=0)
        adapter = self.ranks * sum(fsdp_numel(each, self.ranks, 0) for each in block.parameters if each.adapter)
        return self.compute * unpacked + adapter * (2 * self.compute + trains * (self.compute + reducing * FLOAT))

    def at_end(self, shape: ModelShape) -> int:
        return 0


@dataclass(frozen=True, slots=True)
class Zero3:
    """DeepSpeed ZeRO-3. What was gathered stays until 1e9 elements are live."""

    ranks: int
    compute: int

    def shard(self, shape: ModelShape, rank: int = 0) -> Shard:
        held = sum(even_numel(each.numel, self.ranks) for each in parameters(shape))
        trained = sum(even_numel(each.numel, self.ranks) for each in parameters(shape, _trained))
        return Shard(self.compute * held, FLOAT * trained, 3 * FLOAT * trained)

    def whole(self, shape: ModelShape) -> int:
        """Live parameters, and the flat buffer that the latest came in; alone, a rank has all of them in place."""
        blocks = sum(block.numel * block.count for block in shape.blocks if block.sharded_alone)
        gathered = min(shape.numel, ZERO3_LIVE) + min(blocks, ZERO3_PREFETCH)
        return self.compute * gathered * (self.ranks > 1)

    def gradients(self, shape: ModelShape, adding: bool = False) -> int:
        return _buckets(shape, at_end=False)

    def at_block(self, block: ParameterBlock, trains: bool, reducing: bool = False) -> int:
        return 0

    def at_end(self, shape: ModelShape) -> int:
        return _buckets(shape, at_end=True)


@dataclass(frozen=True, slots=True)
class Zero2:
    """DeepSpeed ZeRO-2."""

    ranks: int
    compute: int

    def shard(self, shape: ModelShape, rank: int = 0) -> Shard:
        trained = sum(each.numel for each in parameters(shape, _trained))
        piece = ZERO2_ALIGNMENT * even_numel(trained, ZERO2_ALIGNMENT * self.ranks)
        return Shard(self.compute * shape.numel, FLOAT * piece, 3 * FLOAT * piece)

    def whole(self, shape: ModelShape) -> int:
        return 0

    def gradients(self, shape: ModelShape, adding: bool = False) -> int:
        return _buckets(shape, at_end=False)

    def at_block(self, block: ParameterBlock, trains: bool, reducing: bool = False) -> int:
        return 0

    def at_end(self, shape: ModelShape) -> int:
        return _buckets(shape, at_end=True)


def _buckets(shape: ModelShape, at_end: bool) -> int:
    """The bucket that fills with gradients, in float32, and a copy on its way to the owners; a small model makes it last."""
    size = min(ZERO_BUCKET, shape.numel_trainable)
    return FLOAT * size * (1 + (at_end or shape.numel_trainable > ZERO_BUCKET))


DEEPSPEED: dict[int, type[Zero2] | type[Zero3]] = {2: Zero2, 3: Zero3}


def sharding_of(model: ModelConfig, learner: LearnerConfig, ranks: int) -> Sharding:
    compute = COMPUTE_BYTES[learner.dtype]
    if learner.engine == "deepspeed":
        return DEEPSPEED[learner.zero_stage](ranks, compute)
    return (Packed if model.quantization else Fsdp)(ranks, compute)
