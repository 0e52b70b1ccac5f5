"""The shape of a model from its config.json alone: every parameter's size, block by block, as transformers builds it.

    model.path ──► config.json of the folder, or rl/plan/facts/<org>--<name>.json ──► architecture ──► ModelShape

Nothing is downloaded and no module is built. A block is what a learner shards, gathers and checkpoints at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from rl.config import ModelConfig

Kind = Literal["vision", "projector", "language", "embedding", "head"]


@dataclass(frozen=True, slots=True)
class ParameterShape:
    """One parameter of a block; `name` is what stands behind the block's own name.

    `adapter`: a LoRA matrix. `packed`: held in 4 bits under QLoRA. `linear`: a matrix that multiplies every token of its
    block, as an embedding or a bias does not.
    """

    name: str
    shape: tuple[int, ...]
    trainable: bool = True
    adapter: bool = False
    packed: bool = False
    linear: bool = False

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class ParameterBlock:
    """`count` equal modules. `sharded_alone`: a unit of sharding and checkpointing, else its parameters are the root's."""

    name: str
    kind: Kind
    parameters: tuple[ParameterShape, ...]
    count: int = 1
    sharded_alone: bool = False

    @property
    def numel(self) -> int:
        """Of one of the `count`."""
        return sum(parameter.numel for parameter in self.parameters)

    @property
    def numel_trainable(self) -> int:
        return sum(parameter.numel for parameter in self.parameters if parameter.trainable)

    @property
    def numel_frozen(self) -> int:
        return self.numel - self.numel_trainable

    @property
    def numel_adapter(self) -> int:
        return sum(parameter.numel for parameter in self.parameters if parameter.adapter)

    @property
    def numel_linear(self) -> int:
        """Parameters that cost two operations a token in a forward."""
        return sum(parameter.numel for parameter in self.parameters if parameter.linear)


@dataclass(frozen=True, slots=True)
class LanguageShape:
    """The decoder. `head_dim` is its own number: heads × head_dim need not be `hidden`."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int


@dataclass(frozen=True, slots=True)
class VisionShape:
    """The image tower. A token of the language model is merge × merge patches.

    `window` is the side in pixels of a local attention window (0: attention is over a whole image in every layer), which
    all but `full_attention_layers` have. `gated`: the MLP has a gate beside its up projection.
    """

    hidden: int
    layers: int
    heads: int
    patch: int
    merge: int
    intermediate: int
    gated: bool
    window: int = 0
    full_attention_layers: int = 0


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A model as the planner sees it. A tied head has no parameters of its own: `tied`."""

    name: str
    model_type: str
    blocks: tuple[ParameterBlock, ...]
    language: LanguageShape
    vision: VisionShape
    tied: bool

    @property
    def numel(self) -> int:
        return sum(block.numel * block.count for block in self.blocks)

    @property
    def numel_trainable(self) -> int:
        return sum(block.numel_trainable * block.count for block in self.blocks)

    @property
    def numel_adapter(self) -> int:
        return sum(block.numel_adapter * block.count for block in self.blocks)

    def of_kind(self, *kinds: Kind) -> tuple[ParameterBlock, ...]:
        return tuple(block for block in self.blocks if block.kind in kinds)


def shape_of(model: ModelConfig) -> ModelShape:
    """Raises ValueError for a model that is neither a folder with a config.json nor among the facts that ship."""
    raise NotImplementedError
