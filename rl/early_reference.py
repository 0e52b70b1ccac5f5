"""The reference, begun on complete groups while others are still sampled.

    complete groups ─► wait, by sampler ─► a chunk with enough tokens ─► reference.begin ─► a handle a group ─► the batch
                                                  what waits at the end is one chunk more ──────────┘

A forward on fewer tokens than fit into the micro-batches of all ranks would be a wasted one, so groups wait until there are
as many. A chunk is of one sampler's groups in the order in which that sampler ended them: what is computed together does
not depend on which of two samplers was faster, and a repeated run computes the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from verl.protocol import DataProto

from rl.batch import Group, group_batch
from rl.protocols import FrozenPolicy


class EarlyReference:
    """`chunk_tokens` of complete groups are worth a forward; None: only all of a batch are."""

    def __init__(self, reference: FrozenPolicy, chunk_tokens: int | None) -> None:
        self.reference, self.chunk_tokens = reference, chunk_tokens
        self._waiting: defaultdict[int, list[Group]] = defaultdict(list)  # by sampler
        self._begun: dict[int, tuple[Group, Any]] = {}  # by the group's id, with its handle

    def add(self, sampler: int, group: Group) -> None:
        """`sampler` has ended `group`, which is likely to be learnt from: begin when there is enough of its groups."""
        if self.chunk_tokens is None:
            return
        waiting = self._waiting[sampler]
        waiting.append(group)
        if sum(map(_tokens, waiting)) >= self.chunk_tokens:
            handles = self.reference.begin(group_batch(waiting))
            self._begun |= {id(group): (group, handle) for group, handle in zip(waiting, handles, strict=True)}
            waiting.clear()

    def handles(self, groups: Sequence[Group], batch: DataProto) -> list[Any]:
        """A handle a group of `batch`, having begun on those that waited. What was begun on other groups is forgotten."""
        begun = {row: self._begun[id(group)][1] for row, group in enumerate(groups) if id(group) in self._begun}
        rest = [row for row in range(len(groups)) if row not in begun]
        if rest:
            begun |= zip(rest, self.reference.begin(batch.select_idxs(rest) if begun else batch), strict=True)
        self._waiting.clear()
        self._begun.clear()
        return [begun[row] for row in range(len(groups))]


def _tokens(group: Group) -> int:
    """What the group costs in a forward that shares its prompt."""
    return group.rollouts[0].prompt_tokens + sum(len(rollout.tokens) for rollout in group.rollouts)
