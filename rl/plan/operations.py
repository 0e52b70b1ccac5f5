"""Floating-point operations of forwards and backwards, from a model's shape and a group's lengths.

    a matrix of n parameters costs 2n a token; attention costs 4 · heads · head_dim a visible (query, key) pair and layer

A backward costs a matrix once for its input's gradient and once more for its own, if it trains; attention twice its
forward. Embeddings, norms and activations cost nothing beside these.
"""

from __future__ import annotations

from dataclasses import dataclass

from rl.plan.parameters import ParameterBlock
from rl.plan.shapes import ModelShape
from rl.plan.workload import Workload


@dataclass(frozen=True, slots=True)
class Group:
    """A prompt and its answers as a forward sees them: lengths in tokens, `patches` of all its images before merging."""

    prompt: float
    answer: float
    answers: int
    images: float
    patches: float
    layout: str  # shared: one row | plain: one row an answer

    @classmethod
    def of(cls, workload: Workload, answers: int, answer: float, layout: str) -> Group:
        return cls(workload.prompt_tokens, answer, answers, workload.images, workload.patches, layout)

    @property
    def copies(self) -> int:
        """How often the prompt and its images are computed."""
        return 1 if self.layout == "shared" else self.answers

    @property
    def tokens(self) -> float:
        return self.copies * self.prompt + self.answers * self.answer

    @property
    def pairs(self) -> float:
        """(query, key) pairs that attention computes: half of causal parts, all of the answers' own."""
        if self.layout == "shared" and self.answers > 1:
            answers = self.answers * self.answer
            return self.prompt**2 / 2 + answers * (self.prompt + answers)
        return self.copies * (self.tokens / self.copies) ** 2 / 2


@dataclass(frozen=True, slots=True)
class Operations:
    """Of one forward, and of the backward that may follow it."""

    forward: float
    backward: float
    recomputed: float  # of the forward, what activation checkpointing computes once more

    def update(self, checkpointing: bool) -> float:
        return self.forward + self.backward + (self.recomputed if checkpointing else 0.0)

    def over(self, ranks: int) -> Operations:
        return Operations(self.forward / ranks, self.backward / ranks, self.recomputed / ranks)


def group_operations(shape: ModelShape, group: Group, together: int = 1) -> Operations:
    """A learner rank's: vision tower, decoder, and the head on answer tokens alone.

    Of `together` ranks that share sequences each computes the whole tower and its part of the rest.
    """
    shared = [part.over(together) for part in (_decoder(shape, group), _head(shape, group))]
    parts = [_vision(shape, group), *shared]
    return Operations(
        sum(part.forward for part in parts), sum(part.backward for part in parts), sum(part.recomputed for part in parts)
    )


def prefill_operations(shape: ModelShape, group: Group) -> float:
    """A sampler's before the first token: the prompt once, whatever the number of answers; its images with it."""
    prompt = Group(group.prompt, 0.0, 1, group.images, group.patches, "plain")
    return _vision(shape, prompt).forward + _decoder(shape, prompt).forward


def decode_operations(shape: ModelShape, context: float) -> float:
    """A sampler's for one token that sees `context` tokens."""
    language = shape.language
    attention = 4 * language.heads * language.head_dim * language.layers * context
    return 2 * _linear(shape.of_kind("language")) + 2 * head_numel(shape) + attention


def head_numel(shape: ModelShape) -> int:
    return shape.language.hidden * shape.language.vocab


def _vision(shape: ModelShape, group: Group) -> Operations:
    if not group.images:
        return Operations(0.0, 0.0, 0.0)
    tower, projector = shape.of_kind("vision"), shape.of_kind("projector")
    patches = group.copies * group.patches
    merged = patches / shape.vision.merge**2
    matrices = 2 * (_linear(tower) * patches + _linear(projector) * merged)
    attention = _vision_attention(shape, group)
    own = 2 * (_linear(tower, trainable=True) * patches + _linear(projector, trainable=True) * merged)
    if not own:
        # Nothing in the tower learns, and nothing below it: no gradient enters, nothing is computed again.
        return Operations(matrices + attention, 0.0, 0.0)
    return Operations(matrices + attention, matrices + own + 2 * attention, matrices + attention)


def _vision_attention(shape: ModelShape, group: Group) -> float:
    vision = shape.vision
    image = group.patches / group.images
    everywhere = 4 * vision.hidden * image
    window = min(image, (vision.window / vision.patch) ** 2)
    local_layers = vision.layers - vision.full_attention_layers
    each = vision.full_attention_layers * everywhere + local_layers * 4 * vision.hidden * window
    return group.copies * group.patches * each


def _decoder(shape: ModelShape, group: Group) -> Operations:
    language = shape.language
    blocks = shape.of_kind("language")
    matrices = 2 * _linear(blocks) * group.tokens
    attention = 4 * language.heads * language.head_dim * language.layers * group.pairs
    own = 2 * _linear(blocks, trainable=True) * group.tokens
    return Operations(matrices + attention, matrices + own + 2 * attention, matrices + attention)


def _head(shape: ModelShape, group: Group) -> Operations:
    """Checkpointed by itself, whatever the recipe says, so its second forward counts as backward."""
    forward = 2.0 * head_numel(shape) * group.answers * group.answer
    trains = any(block.numel_trainable for block in shape.of_kind("head", "embedding"))
    return Operations(forward, forward * (3 if trains else 2), 0.0)


def _linear(blocks: tuple[ParameterBlock, ...], trainable: bool = False) -> int:
    """Parameters of matrices; with `trainable`, of those that learn."""
    return sum(
        block.count * parameter.numel
        for block in blocks
        for parameter in block.parameters
        if parameter.linear and (parameter.trainable or not trainable)
    )
