"""Bytes of activations of one forward and backward of the policy, worked out from what each module keeps for backward.

A decoder block, T tokens in all, c bytes a number in the compute dtype, H hidden, Q = heads × head_dim, I intermediate:

    two norms       T (2·4H + 4cH + 8)      RMSNorm's float32 copy and 1/σ, its normalised and its scaled output
    attention       T (4cQ + 4 heads)       queries, keys and values (as wide where answers branch), output, log-sum-exp
                    T · cQ                  the parts of the output put together, where a row is attended in parts
                    T · 2cD                 rotary cosines and sines
    gated MLP       T · 4cI                 gate, silu(gate), up, their product

Checkpointed, a block keeps its input alone (T·cH), and one block at a time holds all of the above and, at the product's
backward, three gradients of width I in the product's place. tests/rl/plan measures these on real modules.

What is not seen: memory inside kernels, and the rounding of an allocator. Shapes: B rows of L tokens, T = B·L, K answer
tokens, N patches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from rl.plan.parameters import LanguageShape, VisionShape
from rl.plan.shapes import ModelShape

LOGITS_CHUNK = 2048  # answer tokens whose logits exist at once, as rl/policy.py cuts them
LOGITS_TENSORS = 5  # in float32, at a chunk's backward: logits, their exponentials, gradients on the way
SCORED_TENSORS = 3  # without gradients
FLOAT = 4
BIAS_ELEMENTS = 1 << 24  # of a bias of answers, as rl/group_attention.py cuts them
MASK_CHUNK = 64 << 20  # scores of the attention loss that exist at once, as rl/attention_mass.py cuts them


@dataclass(frozen=True, slots=True)
class Forward:
    """What one forward computes: `rows` of `length` tokens, `answer_tokens` scored, `patches` of images before merging.

    `packed`: these are groups, one after another in one row. `bias`: numbers in the biases of their answers, 0 where a
    prompt has one. `copied`: tokens whose keys and values attention copies. `bytes_per_number`: 2 in bfloat16, 4 in float32.
    `whole_length`: of a row that several ranks share, of which `length` is this rank's; biases and embeddings are whole.
    """

    rows: int
    length: int
    answer_tokens: int
    patches: int
    bytes_per_number: int
    packed: bool = True
    bias: int = 0
    copied: int = 0
    whole_length: int | None = None

    @property
    def tokens(self) -> int:
        return self.rows * self.length

    @property
    def in_parts(self) -> bool:
        """Whether attention puts its output together."""
        return self.packed and (self.rows > 1 or self.bias > 0)


@dataclass(frozen=True, slots=True)
class BlockActivations:
    """Of one block: its `input`, all that its backward needs (`saved`, the input's own float32 copy included), and what
    backward holds beside that at its fullest (`working`)."""

    input: int
    saved: int
    working: int

    def kept(self, checkpointed: bool) -> int:
        return self.input if checkpointed else self.saved


@dataclass(frozen=True, slots=True)
class Activations:
    """What a learner's forward and backward hold at three moments: while answers are scored (`logits` of it are logits), and
    in the backward of the last block of the decoder and of the image tower. Blocks of these keep `a_block`, `a_tower_block`.
    """

    scoring: int
    logits: int
    language: int
    vision: int
    a_block: int
    a_tower_block: int

    @property
    def peak(self) -> int:
        return max(self.scoring, self.language, self.vision)


def activations(shape: ModelShape, forward: Forward, checkpointed: bool) -> Activations:
    """Of a forward that is trained. Under LoRA and with a frozen tower, images leave nothing behind."""
    block = language_block(shape.language, forward, norms_train=shape.numel_adapter == 0)
    tower = vision_block(shape.vision, forward)
    sees = any(block.numel_trainable for block in shape.of_kind("vision", "projector"))
    towers = shape.vision.layers * tower.kept(checkpointed) if sees else 0
    mergers = sum(block.count for block in shape.of_kind("projector") if block.numel_linear)
    projector = _projector(shape, forward) if sees else 0
    images = towers + mergers * projector
    c, wide = forward.bytes_per_number, forward.tokens * shape.language.hidden
    kept = shape.language.layers * block.kept(checkpointed) + forward.answer_tokens * shape.language.hidden * c
    final_norm = wide * (FLOAT * (c < FLOAT) + 3 * c)
    logits = logits_bytes(shape.language, forward)
    at_block, at_tower = (each.working + checkpointed * each.saved + c * wide for each in (block, tower))
    always = _inputs(shape.language, shape.vision, forward)
    return Activations(
        scoring=always + images + kept + final_norm + logits,
        logits=logits,
        language=always + images + kept + at_block,
        vision=_pixels(shape.vision, forward) + images - projector + at_tower if sees else 0,
        a_block=block.kept(checkpointed),
        a_tower_block=tower.kept(checkpointed) if sees else 0,
    )


def scoring(shape: ModelShape, forward: Forward) -> int:
    """Of a forward without gradients (old logprobs, the reference): one block at a time, then the logits.

    A block's fullest moment is its MLP's product: beside that, the embeddings, the residual and its normalised copy.
    """
    language, c = shape.language, forward.bytes_per_number
    per_token = c * (3 * language.hidden + 3 * language.intermediate)
    tower = forward.patches * c * (2 * shape.vision.hidden + 3 * shape.vision.intermediate)
    block = forward.tokens * per_token
    logits = logits_bytes(language, forward) // LOGITS_TENSORS * SCORED_TENSORS
    answers = forward.answer_tokens * language.hidden * c + logits
    return _inputs(language, shape.vision, forward) + max(block, tower, 2 * forward.tokens * language.hidden * c + answers)


def attention_loss(shape: LanguageShape, forward: Forward) -> int:
    """What the attention loss adds: float32 queries and keys of a layer and their gradients, three chunks of scores."""
    wide = (shape.heads + shape.kv_heads) * shape.head_dim
    return 3 * MASK_CHUNK + 2 * FLOAT * forward.tokens * wide


def language_block(shape: LanguageShape, forward: Forward, norms_train: bool = True) -> BlockActivations:
    c, tokens = forward.bytes_per_number, forward.tokens
    hidden, wide, narrow = shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    inner = shape.intermediate
    norms = 2 * (FLOAT * hidden + FLOAT + c * hidden * (1 + norms_train))
    keys = wide if forward.bias else narrow
    attention = c * ((2 + forward.in_parts) * wide + 2 * keys) + FLOAT * shape.heads + 2 * c * shape.head_dim
    if shape.head_norms:
        attention += (wide + narrow) * (FLOAT + c * norms_train) + FLOAT * (shape.heads + shape.kv_heads)
    saved = tokens * (norms + attention + 4 * c * inner) + 2 * c * wide * forward.copied
    return BlockActivations(tokens * c * hidden, saved, tokens * c * 2 * inner)


def vision_block(shape: VisionShape, forward: Forward) -> BlockActivations:
    c, hidden = forward.bytes_per_number, shape.hidden
    norms = 2 * ((FLOAT * hidden + FLOAT + 2 * c * hidden) if shape.rms_norm else (2 * c * hidden + 2 * c))
    attention = c * 7 * hidden if shape.rotary else c * 4 * hidden
    attention += FLOAT * shape.heads + (2 * FLOAT * hidden // shape.heads if shape.rotary else 0)
    saved = forward.patches * (norms + attention + c * shape.mlp_tensors * shape.intermediate)
    working = forward.patches * c * (shape.intermediate * (2 if shape.mlp_tensors > 2 else 1) + hidden)
    return BlockActivations(forward.patches * c * hidden, saved, working)


def logits_bytes(shape: LanguageShape, forward: Forward) -> int:
    """Of one chunk of answer tokens, forward or backward."""
    return LOGITS_TENSORS * FLOAT * shape.vocab * min(forward.answer_tokens, LOGITS_CHUNK)


def bias_elements(prompt: float, answer: float, answers: int) -> int:
    """Numbers in the biases of one prompt's answers."""
    if answers == 1:
        return 0
    block = _block(prompt, answer, answers)
    return math.ceil(answers * answer * (prompt + block))


def copied_keys(prompt: float, answer: float, answers: int) -> int:
    """Tokens of one prompt whose keys and values are copied: for every block of its answers but the first."""
    if answers == 1:
        return 0
    blocks = math.ceil(answers * answer / _block(prompt, answer, answers))
    return math.ceil((blocks - 1) * (prompt + _block(prompt, answer, answers)))


def _block(prompt: float, answer: float, answers: int) -> float:
    """Tokens of answers that attend together."""
    together = (math.sqrt(prompt**2 + 4 * BIAS_ELEMENTS) - prompt) / 2  # t with t (P + t) = BIAS_ELEMENTS
    return min(answers * answer, max(answer, together // answer * answer))


def _inputs(language: LanguageShape, vision: VisionShape, forward: Forward) -> int:
    """Biases, rotary cosines and sines of all positions, pixels; of shared rows the embeddings and last hidden states."""
    whole = 0 if forward.whole_length is None else 2 * forward.rows * forward.whole_length * language.hidden
    rotary = 2 * language.rotary_axes * forward.tokens * language.head_dim
    return (forward.bias + rotary + whole) * forward.bytes_per_number + _pixels(vision, forward)


def _pixels(vision: VisionShape, forward: Forward) -> int:
    """In float32 and, where it computes in less, in that too."""
    c = forward.bytes_per_number
    return forward.patches * vision.patch_inputs * (FLOAT + c * (c < FLOAT))


def _projector(shape: ModelShape, forward: Forward) -> int:
    """What a merger keeps: its normalised input, and two tensors as wide; without merging, its input and three outputs.

    That of the last layer goes before the tower's backward begins, those of earlier ones (Qwen3-VL's deepstack) later.
    """
    c, vision = forward.bytes_per_number, shape.vision
    if vision.merge == 1:
        return forward.patches * c * (vision.hidden + 3 * shape.language.hidden)
    norm = (FLOAT + 2 * c) * vision.hidden if vision.rms_norm else 2 * c * vision.hidden
    return forward.patches * (norm + 2 * c * vision.hidden)
