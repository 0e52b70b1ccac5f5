"""The batch between the driver and the learner: verl's DataProto, one row a group, and how it is cut over ranks.

Tensors (N groups, G answers a group, R answer tokens; padded with zeros):

    responses         [N, G, R] int64     rollout_logprobs    [N, G, R] float32
    response_mask     [N, G, R] float32   old_logprobs        [N, G, R] float32   (only off-policy)
    loss_mask         [N, G, R] float32   reference_logprobs  [N, G, R] float32   (only with a KL term, in the learner)
    rewards           [N, G]    float32   advantages          [N, G, R] float32
    prompt_tokens     [N]       int64     current_mask        [N, G, R] float32   (only asynchronous: of the present policy)

`response_mask` says which tokens exist, `loss_mask` which ones teach. Non-tensors, one a group: `sample`, a Sample or a Ray
reference to one, so that encoded images travel once and are decoded where they are used; `reference`, a handle on the
group's reference logprobs, which are computed while the learner does its first forward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from verl.protocol import DataProto
from verl.utils.seqlen_balancing import get_seqlen_balanced_partitions

from data.sample import Sample
from rewards.score import Score
from rl.records import Rollout


@dataclass(frozen=True)
class Group:
    """A prompt and those of its answers that were sampled and judged."""

    sample: Sample
    rollouts: tuple[Rollout, ...]
    scores: tuple[Score, ...]

    @property
    def rewards(self) -> list[float]:
        return [score.total for score in self.scores]


def group_batch(groups: Sequence[Group]) -> DataProto:
    """Rollouts as one DataProto, a row a group. Raises ValueError for no groups."""
    if not groups:
        raise ValueError("no group is left to learn from: every rollout or reward of this step failed, see the counts above")
    num_answers = max(len(group.rollouts) for group in groups)
    longest = max(len(rollout.tokens) for group in groups for rollout in group.rollouts)
    shape = (len(groups), num_answers, longest)
    responses, mask, logprobs = torch.zeros(shape, dtype=torch.long), torch.zeros(shape), torch.zeros(shape)
    rewards = torch.zeros(shape[:2])
    for n, group in enumerate(groups):
        for g, (rollout, score) in enumerate(zip(group.rollouts, group.scores, strict=True)):
            size = len(rollout.tokens)
            responses[n, g, :size] = torch.tensor(rollout.tokens)
            logprobs[n, g, :size] = torch.tensor(rollout.logprobs)
            mask[n, g, :size] = 1.0
            rewards[n, g] = score.total
    return DataProto.from_dict(
        tensors={
            "responses": responses,
            "response_mask": mask,
            "loss_mask": mask.clone(),
            "rollout_logprobs": logprobs,
            "rewards": rewards,
            "prompt_tokens": torch.tensor([group.rollouts[0].prompt_tokens for group in groups]),
        },
        non_tensors={"sample": as_objects([group.sample for group in groups])},
    )


def answer_batch(samples: Sequence[Sample], answers: Sequence[Sequence[int]], prompt_tokens: Sequence[int]) -> DataProto:
    """Given answers, one a prompt (SFT), in the same layout with G = 1."""
    longest = max(len(tokens) for tokens in answers)
    responses = torch.zeros(len(answers), 1, longest, dtype=torch.long)
    mask = torch.zeros(len(answers), 1, longest)
    for n, tokens in enumerate(answers):
        responses[n, 0, : len(tokens)] = torch.tensor(tokens)
        mask[n, 0, : len(tokens)] = 1.0
    return DataProto.from_dict(
        tensors={
            "responses": responses,
            "response_mask": mask,
            "loss_mask": mask.clone(),
            "prompt_tokens": torch.tensor(prompt_tokens),
        },
        non_tensors={"sample": as_objects(samples)},
    )


def as_objects(values: Sequence[Any]) -> np.ndarray[Any, np.dtype[np.object_]]:
    """One object a group, as DataProto keeps what is no tensor."""
    array = np.empty(len(values), dtype=object)
    for place, value in enumerate(values):
        array[place] = value
    return array


@dataclass(frozen=True)
class BatchTotals:
    """What a loss is normalised by: counts over the whole update, all ranks and micro-batches."""

    world_size: int
    tokens: int
    answers: int

    @classmethod
    def of(cls, batch: DataProto, world_size: int) -> BatchTotals:
        mask = batch.batch["loss_mask"]
        return cls(world_size, int(mask.sum()), int((mask.sum(-1) > 0).sum()))


@dataclass(frozen=True)
class RankShare:
    """One rank's part of an update: its groups, cut into micro-batches (indices into `batch`)."""

    batch: DataProto
    micro_batches: tuple[tuple[int, ...], ...]
    totals: BatchTotals
    rows: tuple[int, ...]  # rows of the whole batch that `batch` holds, in its order


def sequence_lengths(batch: DataProto, layout: str) -> list[int]:
    """Tokens that each group costs in a forward."""
    mask = batch.batch["response_mask"]
    copies = 1 if layout == "shared" else (mask.sum(-1) > 0).sum(-1)
    lengths: list[int] = (batch.batch["prompt_tokens"] * copies + mask.sum((-1, -2)).long()).tolist()
    return lengths


def balance(batch: DataProto, world_size: int, token_budget: int, layout: str) -> list[RankShare]:
    """Cut a batch into equally many micro-batches a rank, balanced by tokens, each within `token_budget` where possible.

    What a micro-batch costs is the tokens of its rows: a shared row has no padding, plain ones are as long as the longest of
    them. Ranks compute in lockstep (every forward gathers parameters), so none may be left without a micro-batch: a batch
    with fewer groups than ranks repeats one with an all-zero loss mask.
    """
    totals = BatchTotals.of(batch, world_size)
    padded = batch if len(batch) >= world_size else _with_silent_copies(batch, world_size)
    lengths, cost = sequence_lengths(padded, layout), MICRO_BATCH_TOKENS[layout](padded)
    rounds = max(1, -(-sum(lengths) // (world_size * token_budget)))
    while True:
        cells = min(rounds * world_size, len(padded) // world_size * world_size)
        partitions = get_seqlen_balanced_partitions(lengths, k_partitions=cells, equal_size=False)
        heaviest = max(cost(cell) for cell in partitions)
        if heaviest <= token_budget or cells + world_size > len(padded):
            break
        rounds += 1
    shares = []
    for rank in range(world_size):
        mine = partitions[rank::world_size]
        rows = [row for cell in mine for row in sorted(cell)]
        order = {row: place for place, row in enumerate(rows)}
        cells_of_rank = tuple(tuple(order[row] for row in sorted(cell)) for cell in mine)
        shares.append(RankShare(padded.select_idxs(rows), cells_of_rank, totals, tuple(rows)))
    return shares


def fits_at_once(lengths: Sequence[int], world_size: int, token_budget: int) -> bool:
    """Whether `balance` gives every rank one micro-batch within the budget, of groups with these tokens."""
    if len(lengths) < world_size:
        return max(lengths) <= token_budget
    partitions = get_seqlen_balanced_partitions(list(lengths), k_partitions=world_size, equal_size=False)
    return all(sum(lengths[group] for group in cell) <= token_budget for cell in partitions)


def _packed_tokens(batch: DataProto) -> Callable[[Sequence[int]], int]:
    lengths = sequence_lengths(batch, "shared")
    return lambda groups: sum(lengths[group] for group in groups)


def _padded_tokens(batch: DataProto) -> Callable[[Sequence[int]], int]:
    answers = batch.batch["response_mask"].sum(-1).long().tolist()
    prompts = batch.batch["prompt_tokens"].tolist()
    rows_of = [[prompt + size for size in sizes if size] for prompt, sizes in zip(prompts, answers, strict=True)]

    def cost(groups: Sequence[int]) -> int:
        rows = [length for group in groups for length in rows_of[group]]
        return len(rows) * max(rows, default=0)

    return cost


# By rl/layout.py's layouts: from a batch, what some of its groups cost together
MICRO_BATCH_TOKENS = {"shared": _packed_tokens, "plain": _padded_tokens}


def _with_silent_copies(batch: DataProto, world_size: int) -> DataProto:
    copies = batch.select_idxs([0] * (world_size - len(batch)))
    copies.batch["loss_mask"] = torch.zeros_like(copies.batch["loss_mask"])
    return DataProto.concat([batch, copies])


def gather_rows(shares: Sequence[RankShare], values: Sequence[Tensor], num_groups: int) -> Tensor:
    """Per-rank results [rows of the rank, …] back in the order of the whole batch; silent copies are left out."""
    whole = torch.zeros(num_groups, *values[0].shape[1:])
    for share, value in zip(shares, values, strict=True):
        for place, row in enumerate(share.rows):
            if row < num_groups:
                whole[row] = value[place]
    return whole
