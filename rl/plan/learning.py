"""Time of the learner and the reference: forwards, backwards, what ranks exchange, the optimizer, checkpoints.

Gathers run ahead of the blocks that need them, so an exchange shows only as far as it outlasts the computing beside it.
"""

from __future__ import annotations

from rl.plan.roofline import COLLECTIVE_S, HOST_BYTES_PER_S, Cost, Phase, longest, phase, tflop
from rl.plan.sharding import FLOAT
from rl.plan.situation import Dealt, Situation

ADAMW = 7 * FLOAT  # reads parameter, gradient and two moments, writes three of them


def logprobs(at: Situation) -> tuple[Phase, ...]:
    """Old logprobs, where a step has several updates, and the reference's, which runs beside the learner's forwards."""
    recipe = at.recipe
    phases = []
    hidden = _forward(at, at.groups_per_update, recipe.learner.ranks, "learner")[0].seconds
    if recipe.algorithm.old_logprobs == "learner" and at.groups > at.groups_per_update:
        cost, how = _forward(at, at.groups, recipe.learner.ranks, "learner")
        phases.append(phase("old logprobs", cost, how))
        hidden = cost.seconds
    if recipe.algorithm.kl_coefficient:
        on_learner = recipe.reference.placement == "learner"
        ranks = recipe.learner.ranks if on_learner else recipe.reference.ranks
        cost, how = _forward(at, at.groups, ranks, "learner" if on_learner else "reference")
        alone = on_learner or recipe.cluster.placement == "colocated"
        phases.append(phase("reference", cost, how, 0.0 if alone else hidden))
    return tuple(phases)


def _forward(at: Situation, groups: int, ranks: int, role: str) -> tuple[Cost, str]:
    """Logprobs of `groups` without gradients: every micro-batch gathers the parameters once."""
    dealt = at.dealt(groups, ranks, role)
    operations = dealt.groups * at.operations(role).forward
    gathering = _gathers(at, sharded_numel(at), dealt.micro_batches, ranks, role)
    cost = longest(at.machine.compute(operations), gathering, _reading(at, dealt, 1))
    how = f"{tflop(operations)} a rank, {dealt.tokens:.0f} tokens in {dealt.micro_batches} micro-batches"
    return cost, how if cost.bound == "compute" else f"{how}; gathers {gathering.seconds:.3g} s"


def update(at: Situation) -> tuple[Phase, ...]:
    """Forward, backward and what is computed again, the exchanges beside them, and the optimizer; all updates of a step."""
    updates = -(-at.groups // at.groups_per_update)
    dealt = at.dealt(at.groups_per_update, at.recipe.learner.ranks, "learner")
    checkpointing = at.recipe.learner.activation_checkpointing
    operations = at.operations("learner")
    total = updates * dealt.groups * operations.update(checkpointing)
    passes = 3 if checkpointing else 2
    computing = longest(at.machine.compute(total), _times(_reading(at, dealt, passes), updates))
    how = (
        f"{updates} × {dealt.micro_batches} micro-batches, {updates * dealt.tokens:.0f} tokens a rank, "
        f"{operations.update(checkpointing) / operations.forward:.2g} × forward = {tflop(total)}"
    )
    exchange, exchange_how = _exchanges(at, updates, dealt)
    return (
        phase("update", computing, how),
        *_sequence_exchange(at, updates, dealt, passes),
        phase("collectives", exchange, exchange_how, computing.seconds),
        _optimizer(at, updates),
    )


def _sequence_exchange(at: Situation, updates: int, dealt: Dealt, passes: int) -> tuple[Phase, ...]:
    """Queries, keys, values and outputs of every layer change between slices of tokens and slices of heads, each pass."""
    together, language = at.recipe.learner.sequence_parallel, at.shape.language
    if together == 1:
        return ()
    wide = 2 * (language.heads + language.kv_heads) * language.head_dim * at.compute_bytes
    each = wide * updates * dealt.tokens / together * language.layers
    cost = at.machine.link(passes * each * (together - 1) / together)
    how = f"{passes} passes × {each / 1e9:.3g} GB of queries, keys, values and outputs, among {together} ranks"
    return (phase("sequence exchange", cost, how),)


def _times(cost: Cost, number: int) -> Cost:
    return Cost(cost.seconds * number, cost.bound)


def _reading(at: Situation, dealt: Dealt, passes: int) -> Cost:
    """Weights from memory once a pass; packed ones are unpacked first: half a byte read, two written, two read."""
    each = 4.5 if at.recipe.model.quantization else at.compute_bytes
    return at.machine.memory(dealt.micro_batches * passes * each * at.shape.numel)


def resident(at: Situation) -> bool:
    """Whether every rank holds whole parameters: ZeRO-2."""
    return at.recipe.learner.engine == "deepspeed" and at.recipe.learner.zero_stage == 2


def sharded_numel(at: Situation) -> int:
    """Parameters that ranks gather for a forward: all, but of a packed base, which every rank holds, the adapter alone."""
    if resident(at):
        return 0
    return at.shape.numel_adapter if at.recipe.model.quantization else at.shape.numel


def _gathers(at: Situation, numel: int, times: int, ranks: int, role: str) -> Cost:
    """`numel` parameters in the compute type, gathered unit by unit, `times` over."""
    each = at.machine.exchange(numel * at.compute_bytes, ranks, at.places.nodes(role))
    latency = COLLECTIVE_S * _blocks(at) if ranks > 1 and numel else 0.0
    return Cost(times * (each.seconds + latency), each.bound)


def _blocks(at: Situation) -> int:
    return sum(block.count for block in at.shape.blocks if block.sharded_alone) + 1


def _exchanges(at: Situation, updates: int, dealt: Dealt) -> tuple[Cost, str]:
    """Parameters gathered for forward and backward, gradients reduced in float32; over PCIe where they live on the host.

    ZeRO-2 gathers what it has updated, once an update.
    """
    learner, nodes, trained = at.recipe.learner, at.places.nodes("learner"), at.shape.numel_trainable
    rounds, whole = updates * dealt.micro_batches, sharded_numel(at)
    gathers = _gathers(at, trained, updates, learner.ranks, "learner")
    how = f"{updates} × gather {trained * at.compute_bytes / 1e9:.3g} GB"
    if not resident(at):
        gathers = _gathers(at, whole, 2 * rounds, learner.ranks, "learner")
        how = f"{2 * rounds} × gather {whole * at.compute_bytes / 1e9:.3g} GB"
    reduced = at.machine.exchange(FLOAT * trained, learner.ranks, nodes)
    wire = Cost(gathers.seconds + rounds * reduced.seconds, longest(gathers, reduced).bound)
    how = f"{how}, {rounds} × reduce {FLOAT * trained / 1e9:.3g} GB, {learner.ranks} ranks, nodes: {nodes}"
    if learner.offload != "all":
        return wire, how
    shard = FLOAT * (2 * whole + trained) / learner.ranks
    return longest(wire, at.machine.pcie(rounds * shard)), f"{how}; shards cross PCIe as often"


def _optimizer(at: Situation, updates: int) -> Phase:
    """AdamW on a rank's shard, where its state lives."""
    learner = at.recipe.learner
    shard = at.shape.numel_trainable / learner.ranks
    how = f"{updates} × {ADAMW} bytes × {shard / 1e6:,.1f} M parameters a rank"
    if learner.offload is None:
        return phase("optimizer", _times(at.machine.memory(ADAMW * shard), updates), how)
    together = at.places.most_on_a_node("learner")
    host = Cost(updates * ADAMW * shard * together / HOST_BYTES_PER_S, "host")
    crossing = (
        at.machine.pcie(updates * (FLOAT + at.compute_bytes) * shard).seconds if learner.offload == "optimizer" else 0.0
    )
    return phase("optimizer", Cost(host.seconds + crossing, "host"), f"{how}, on the host, {together} ranks a node")


def checkpoint_bytes(at: Situation) -> int:
    """Parameters and two moments in float32 of what trains; under LoRA the adapter alone, else the frozen part as well."""
    frozen = 0 if at.shape.numel_adapter else at.shape.numel - at.shape.numel_trainable
    return FLOAT * (3 * at.shape.numel_trainable + frozen)


def checkpoints(at: Situation) -> int:
    """Written in a whole stage."""
    every = at.recipe.checkpoint.every
    return ((at.steps - 1) // every if every else 0) + 1


def checkpoint(at: Situation) -> Phase:
    size, count = checkpoint_bytes(at), checkpoints(at)
    seconds = size / (at.recipe.plan.disk_gb_per_s * 1e9)
    how = f"{count} × {size / 1e9:.3g} GB to disk at {at.recipe.plan.disk_gb_per_s:g} GB/s, over {at.steps} steps"
    return phase("checkpoint", Cost(count * seconds / max(1, at.steps), "disk"), how)
