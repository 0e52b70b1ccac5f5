"""What a learner's rank, and a reference's, hold on a GPU, moment by moment; the fullest moment is what must fit.

scoring     all blocks kept, logits of one chunk          head's gradient whole, what is in no block gathered
language    a decoder block's backward                    its parameters, gradients and reductions in flight
vision      an image block's backward                     the same of the tower
end         the last reduction                            no activations
publish     the next policy on its way to the samplers    no gradients, two buckets
"""

from __future__ import annotations

import math

from rl.config import AttentionLossConfig, Recipe
from rl.plan.activations import Activations, Forward, activations, attention_loss, bias_elements, copied_keys, scoring
from rl.plan.memory_records import MemoryItem, fullest
from rl.plan.shapes import ModelShape
from rl.plan.sharding import COMPUTE_BYTES, Shard, Sharding, sharding_of
from rl.plan.workload import Workload

# CUDA's context, NCCL's channels, cuBLAS's workspace: no arithmetic, an assumption.
RUNTIME = 3 << 29
RUNTIME_ITEM = MemoryItem("runtime", RUNTIME, "CUDA context, NCCL, cuBLAS workspace: assumed")
# What learner.offload moves to the host: parameters, gradients and optimizer.
OFFLOADED: dict[str | None, tuple[str, ...]] = {
    None: (),
    "optimizer": ("gradients", "optimizer"),
    "all": ("weights", "gradients", "optimizer"),
}


def learner_items(recipe: Recipe, shape: ModelShape, workload: Workload, stage: str) -> tuple[MemoryItem, ...]:
    """Of a learner rank in `stage`."""
    ranks = recipe.learner.ranks
    sharding = sharding_of(recipe.model, recipe.learner, ranks)
    held = _held(recipe, sharding.shard(shape), sharding)
    moments = [
        (*held, *moment, RUNTIME_ITEM)
        for forward in forwards(recipe, workload, stage, ranks, recipe.learner.sequence_parallel)
        for moment in _training(recipe, shape, forward, sharding, stage)
    ]
    moments += [(*held, *_step(shape, sharding), RUNTIME_ITEM)]
    moments += [publishing_items(recipe, shape)]
    return fullest(moments)


def publishing_items(recipe: Recipe, shape: ModelShape) -> tuple[MemoryItem, ...]:
    """Of a learner rank that hands its weights over: no gradients, a block gathered and a copy of one tensor of it."""
    sharding = sharding_of(recipe.model, recipe.learner, recipe.learner.ranks)
    idle = (item for item in _held(recipe, sharding.shard(shape), sharding) if item.name != "gradients")
    gathered = sharding.whole(shape) + max(sharding.at_block(block, trains=False) for block in shape.blocks)
    gathered += largest_published(recipe, shape)
    return (*idle, _gathered_item(recipe, gathered), sync_buffers(recipe, shape), RUNTIME_ITEM)


def reference_items(recipe: Recipe, shape: ModelShape, workload: Workload, stage: str) -> tuple[MemoryItem, ...]:
    """Of a rank of the reference, which only scores, and whole sequences whatever the learner shares."""
    ranks = recipe.reference.ranks
    sharding = sharding_of(recipe.model, recipe.learner, ranks)
    held = tuple(item for item in _held(recipe, sharding.shard(shape), sharding) if item.name == "weights")
    moments = []
    for forward in forwards(recipe, workload, stage, ranks, together=1):
        needed = scoring(shape, forward)
        gathered = sharding.whole(shape) + max(sharding.at_block(block, trains=False) for block in shape.blocks)
        block = MemoryItem("gathered block", gathered, f"{_gathered(recipe)} in {recipe.learner.dtype}")
        moments.append((*held, block, MemoryItem("activations", needed, f"{_told(forward)}, no gradients"), RUNTIME_ITEM))
    return fullest(moments)


def host_shard(recipe: Recipe, shape: ModelShape) -> int:
    """Bytes of a learner rank that learner.offload keeps in host memory."""
    shard = sharding_of(recipe.model, recipe.learner, recipe.learner.ranks).shard(shape)
    return sum(getattr(shard, name) for name in OFFLOADED[recipe.learner.offload])


def whole_shard(recipe: Recipe, shape: ModelShape) -> int:
    """Bytes of a learner rank's parameters and optimizer: what leaves the GPU while samplers have it."""
    shard = sharding_of(recipe.model, recipe.learner, recipe.learner.ranks).shard(shape)
    return shard.weights + shard.optimizer


def reference_shard(recipe: Recipe, shape: ModelShape) -> int:
    """Bytes of a reference rank's parameters."""
    return sharding_of(recipe.model, recipe.learner, recipe.reference.ranks).shard(shape).weights


def forwards(recipe: Recipe, workload: Workload, stage: str, ranks: int, together: int) -> list[Forward]:
    """A full micro-batch of mean groups, and a single group whose prompt and answers are all the longest.

    Of `ranks`, `together` share a sequence.
    """
    answers = recipe.grpo.num_generations if stage == "grpo" else 1
    in_update = recipe.grpo.prompts_per_update if stage == "grpo" else recipe.sft.batch_size
    shared = recipe.learner.layout == "shared"
    compute = COMPUTE_BYTES[recipe.learner.dtype]

    def forward(groups: int, prompt: float, answer: float, patches: float) -> Forward:
        rows = groups if shared else groups * answers
        length = prompt + (answers if shared else 1) * answer
        copies = groups if shared else rows
        return Forward(
            rows=rows,
            length=math.ceil(length / together),
            answer_tokens=math.ceil(groups * answers * answer / together),
            patches=math.ceil(copies * patches),
            bytes_per_number=compute,
            packed=shared,
            bias=groups * bias_elements(prompt, answer, answers) if shared else 0,
            copied=math.ceil(groups * copied_keys(prompt, answer, answers) / together) if shared else 0,
            whole_length=math.ceil(length) if together > 1 else None,
        )

    mean = workload.prompt_tokens + answers * workload.answer_tokens
    if not shared:
        mean = answers * (workload.prompt_tokens + workload.answer_tokens)
    groups = min(max(1, int(recipe.learner.tokens_per_micro_batch // mean)), max(1, math.ceil(in_update * together / ranks)))
    typical = forward(groups, workload.prompt_tokens, workload.answer_tokens, workload.patches)
    longest = forward(1, workload.prompt_tokens_max, workload.answer_tokens_max, workload.patches_max)
    return [typical, longest]


def _held(recipe: Recipe, shard: Shard, sharding: Sharding) -> tuple[MemoryItem, ...]:
    away = OFFLOADED[recipe.learner.offload]
    how = f"{recipe.learner.engine}{_stage(recipe)} over {sharding.ranks}"
    base = (
        f"a base in {recipe.model.quantization} whole on every rank, the adapter"
        if recipe.model.quantization
        else "parameters"
    )
    told = {
        "weights": f"{base}, {how}",
        "gradients": f"float32, of what is trained, {how}",
        "optimizer": f"AdamW's moments{' and masters' if recipe.learner.engine == 'deepspeed' else ''}, {how}",
    }
    return tuple(
        MemoryItem(name, 0 if name in away else getattr(shard, name), f"{line}{', on the host' if name in away else ''}")
        for name, line in told.items()
    )


def _training(
    recipe: Recipe, shape: ModelShape, forward: Forward, sharding: Sharding, stage: str
) -> list[tuple[MemoryItem, ...]]:
    """Moments of a micro-batch's forward and backward, after the first of an update."""
    found = activations(shape, forward, recipe.learner.activation_checkpointing)
    extra = _attention_loss(recipe.sft.attention_loss, shape, forward) if stage == "sft" else 0
    whole, gradients = sharding.whole(shape), sharding.gradients(shape)
    moments = []
    kinds = (("language", found.language, found.a_block), ("vision", found.vision, found.a_tower_block))
    for kind, needed, a_block in kinds:
        block = max(shape.of_kind(kind), key=lambda each: each.numel)  # type: ignore[arg-type]
        for reducing in (
            False,
            True,
        ):  # the last block of all; the one before it, when that one's gradients are on their way
            at_block = sharding.at_block(block, trains=block.numel_trainable > 0, reducing=reducing)
            gathered = _gathered_item(recipe, whole + gradients + at_block)
            left = needed + extra - reducing * a_block
            moments.append((gathered, *_activation_items(found, left, 0, forward, recipe)))
    at_scoring = whole + sharding.gradients(shape, adding=True)
    moments.append(
        (
            _gathered_item(recipe, at_scoring),
            *_activation_items(found, found.scoring - found.logits + extra, found.logits, forward, recipe),
        )
    )
    return moments


def _activation_items(
    found: Activations, needed: int, logits: int, forward: Forward, recipe: Recipe
) -> tuple[MemoryItem, ...]:
    kept = "one block at a time" if recipe.learner.activation_checkpointing else "all blocks kept"
    items = [MemoryItem("activations", needed, f"{_told(forward)}, {kept}")]
    if logits:
        items.append(MemoryItem("logits", logits, "float32, five tensors of a chunk of 2,048 answer tokens × vocabulary"))
    return tuple(items)


def _step(shape: ModelShape, sharding: Sharding) -> tuple[MemoryItem, ...]:
    """The last reduction; AdamW's one kernel needs nothing beside what it updates."""
    return (MemoryItem("gathered block", sharding.at_end(shape), "the last reduction of gradients, in float32"),)


def sync_buffers(recipe: Recipe, shape: ModelShape) -> MemoryItem:
    """Two buckets at a time, or all that is published where that is less."""
    published = _published_bytes(recipe) * (shape.numel_adapter if _adapters_alone(recipe) else shape.numel_base)
    return MemoryItem(
        "sync buffers", min(2 * recipe.sync.bucket_mb << 20, published), f"two buckets of {recipe.sync.bucket_mb} MiB"
    )


def receive_buffers(recipe: Recipe, shape: ModelShape) -> MemoryItem:
    """A sampler's: the buckets, and a tensor that was cut because it fits into none, whole again."""
    buckets, largest = sync_buffers(recipe, shape), largest_published(recipe, shape)
    if largest <= recipe.sync.bucket_mb << 20:
        return buckets
    return MemoryItem(buckets.name, buckets.bytes + largest, f"{buckets.how}, and the largest tensor put together")


def largest_published(recipe: Recipe, shape: ModelShape) -> int:
    """Bytes of the largest tensor that travels."""
    adapters = _adapters_alone(recipe)
    return _published_bytes(recipe) * max(
        parameter.numel for block in shape.blocks for parameter in block.parameters if parameter.adapter == adapters
    )


def _adapters_alone(recipe: Recipe) -> bool:
    """A quantized base travels too, once."""
    lora = recipe.model.lora
    return lora.rank > 0 and lora.sync == "adapter" and not recipe.model.quantization


def _published_bytes(recipe: Recipe) -> int:
    return COMPUTE_BYTES[recipe.learner.dtype]


def _attention_loss(config: AttentionLossConfig, shape: ModelShape, forward: Forward) -> int:
    return attention_loss(shape.language, forward) if config.weight else 0


def _gathered_item(recipe: Recipe, size: int) -> MemoryItem:
    return MemoryItem("gathered block", size, f"{_gathered(recipe)} in {recipe.learner.dtype}; gradients on their way")


def _gathered(recipe: Recipe) -> str:
    if recipe.model.quantization:
        return "one matrix unpacked"
    if recipe.learner.engine == "deepspeed":
        return "up to 1e9 live parameters" if recipe.learner.zero_stage == 3 else "buckets of gradients"
    return "embedding, head and projector whole, two blocks"


def _stage(recipe: Recipe) -> str:
    return f" ZeRO-{recipe.learner.zero_stage}" if recipe.learner.engine == "deepspeed" else ""


def _told(forward: Forward) -> str:
    return f"{forward.rows} × {forward.length:,} tokens, {forward.patches:,} patches"
