"""Records of a model's parameters: the modules that are sharded, gathered and checkpointed together, and their sizes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

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
    """`count` equal modules. `sharded_alone`: a unit of sharding of its own, else its parameters are the root's."""

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
    """The decoder. `head_dim` is its own number: heads × head_dim need not be `hidden`.

    `head_norms`: queries and keys are normalised head by head. `rotary_axes`: axes of the positions that are kept apart.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    head_norms: bool = False
    rotary_axes: int = 1


@dataclass(frozen=True, slots=True)
class VisionShape:
    """The image tower. A token of the language model is merge × merge patches.

    `window` is the side in pixels of a local attention window (0: attention is over a whole image in every layer), which
    all but `full_attention_layers` have. `gated`: the MLP has a gate beside its up projection; backward needs `mlp_tensors`
    of its width. `rms_norm`: RMSNorm, which computes in float32, in place of LayerNorm. `rotary`: positions are rotary, and
    queries, keys and values one projection. `patch_inputs`: numbers that a patch is made of.
    """

    hidden: int
    layers: int
    heads: int
    patch: int
    merge: int
    intermediate: int
    gated: bool
    window: int
    full_attention_layers: int
    mlp_tensors: int = 2
    rms_norm: bool = False
    rotary: bool = True
    patch_inputs: int = 1176


def linear(name: str, outputs: int, inputs: int, bias: bool = False) -> tuple[ParameterShape, ...]:
    """A linear layer's weight, and its bias where it has one."""
    weight = ParameterShape(f"{name}.weight", (outputs, inputs), linear=True)
    return (weight, ParameterShape(f"{name}.bias", (outputs,))) if bias else (weight,)


def norm(name: str, size: int, bias: bool = False) -> tuple[ParameterShape, ...]:
    """RMSNorm, or LayerNorm with its bias."""
    weight = ParameterShape(f"{name}.weight", (size,))
    return (weight, ParameterShape(f"{name}.bias", (size,))) if bias else (weight,)
