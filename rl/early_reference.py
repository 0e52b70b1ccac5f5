"""The reference, begun on complete groups while others are still sampled.

    complete groups ─► wait, by sampler ─► as many as fit ─► reference.begin ─► a handle a group ─► the batch
                                             what waits at the end is one chunk more ──────────┘

A forward on fewer tokens than fit into one micro-batch of every rank would be a wasted one, and on more a second, so groups
wait until the next one does not fit with them. A chunk is of one sampler's groups in the order in which that sampler ended
them: what is computed together does not depend on which of two samplers was faster, and a repeated run computes the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from verl.protocol import DataProto

from rl.batch import Group, group_batch
from rl.protocols import FrozenPolicy

Fits = Callable[[Sequence[int]], bool]  # whether groups of so many tokens each are one micro-batch of every rank


class EarlyReference:
    """Begins with as many complete groups as `fits` says go together; None: only with all of a batch."""

    def __init__(self, reference: FrozenPolicy, fits: Fits | None) -> None:
        self.reference, self.fits = reference, fits
        self._waiting: defaultdict[int, list[Group]] = defaultdict(list)  # by sampler
        self._begun: dict[int, tuple[Group, Any]] = {}  # by the group's id, with its handle

    def add(self, sampler: int, group: Group) -> None:
        """`sampler` has ended `group`, which is likely to be learnt from: begin with those before it, if it does not fit."""
        if self.fits is None:
            return
        waiting = self._waiting[sampler]
        if waiting and not self.fits([_tokens(each) for each in (*waiting, group)]):
            handles = self.reference.begin(group_batch(waiting))
            self._begun |= {id(each): (each, handle) for each, handle in zip(waiting, handles, strict=True)}
            waiting.clear()
        waiting.append(group)

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
