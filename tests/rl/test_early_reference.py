"""The reference on complete groups: in chunks of one sampler's groups, whoever is faster, and never on a group twice."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial

import pytest
from verl.protocol import DataProto

from rewards.score import Score
from rl.batch import Group, balance, fits_at_once, group_batch, sequence_lengths
from rl.early_reference import EarlyReference
from rl.records import Rollout
from tests.rl.test_batch import sample


class NamingReference:
    """Its handles say on which groups a call began, and which of them the handle is of."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def begin(self, batch: DataProto) -> list[tuple[int, str]]:
        names = [s.id for s in batch.non_tensor_batch["sample"]]
        self.calls.append(names)
        return [(len(self.calls), name) for name in names]


def group(number: int, answer_tokens: int = 20) -> Group:
    """10 + 2 × `answer_tokens` tokens, 50 by default."""
    tokens = (5,) * answer_tokens
    rollouts = tuple(Rollout(f"s{number}", tokens, (-1.0,) * answer_tokens, "", "stop", 0, 10) for _ in range(2))
    return Group(sample(number), rollouts, (Score(0.0, {}), Score(1.0, {})))


def two_of_fifty(lengths: Sequence[int]) -> bool:
    return fits_at_once(lengths, world_size=1, token_budget=100)


def names(*numbers: int) -> list[str]:
    return [f"s{number}" for number in numbers]


def test_a_chunk_begins_when_the_next_group_does_not_fit_and_the_rest_with_the_batch() -> None:
    reference = NamingReference()
    early = EarlyReference(reference, fits=two_of_fifty)
    groups = [group(n) for n in range(6)]
    for sampler, number in [(0, 4), (1, 1), (0, 0)]:
        early.add(sampler, groups[number])
    assert reference.calls == [], "sampler 0 has ended 100 tokens, sampler 1 has 50: another may fit"
    for sampler, number in [(1, 5), (1, 3), (0, 2)]:
        early.add(sampler, groups[number])
    assert reference.calls == [names(1, 5), names(4, 0)]
    assert early.handles(groups, group_batch(groups)) == [(2, "s0"), (1, "s1"), (3, "s2"), (3, "s3"), (2, "s4"), (1, "s5")]
    assert reference.calls[2] == names(2, 3), "in the batch's order, whichever ended first"


@pytest.mark.parametrize("merged", sorted(set(itertools.permutations([0, 0, 0, 1, 1, 1]))))
def test_what_is_computed_together_does_not_depend_on_which_sampler_is_faster(merged: tuple[int, ...]) -> None:
    reference = NamingReference()
    early = EarlyReference(reference, fits=two_of_fifty)
    ended = {0: iter([4, 0, 2]), 1: iter([1, 5, 3])}
    groups = [group(n) for n in range(6)]
    for sampler in merged:
        early.add(sampler, groups[next(ended[sampler])])
    handles = early.handles(groups, group_batch(groups))
    assert [name for _, name in handles] == names(*range(6))
    assert sorted(reference.calls) == sorted([names(4, 0), names(1, 5), names(2, 3)])


def test_without_chunks_the_whole_batch_is_begun_at_once() -> None:
    reference = NamingReference()
    early = EarlyReference(reference, fits=None)
    groups = [group(n) for n in range(4)]
    for each in groups:
        early.add(0, each)
    assert reference.calls == []
    early.handles(groups, group_batch(groups))
    assert reference.calls == [names(0, 1, 2, 3)]


def test_a_step_inherits_nothing_from_the_step_before() -> None:
    reference = NamingReference()
    early = EarlyReference(reference, fits=two_of_fifty)
    first, second = [group(n) for n in range(3)], [group(n) for n in range(3)]
    for each in first:
        early.add(0, each)
    early.handles(first[:1], group_batch(first[:1]))
    for each in second:
        early.add(0, each)
    assert early.handles(second, group_batch(second)) == [(2, "s0"), (2, "s1"), (3, "s2")]


def test_a_chunk_is_one_micro_batch_a_rank_within_the_budget_whatever_the_groups_sizes() -> None:
    """Groups of 66 tokens over 4 ranks of 82, and of 10 to 90 over 3 ranks of 100."""
    for ranks, budget, answers in ((4, 82, [28] * 12), (3, 100, [0, 40, 3, 17, 25, 33, 8, 40, 12, 29, 1, 36])):
        begun: list[DataProto] = []
        reference = NamingReference()
        reference.begin = lambda batch, begun=begun: begun.append(batch) or [0] * len(batch)  # type: ignore[method-assign,misc]
        early = EarlyReference(reference, partial(fits_at_once, world_size=ranks, token_budget=budget))
        for number, tokens in enumerate(answers):
            early.add(0, group(number, max(1, tokens)))
        assert len(begun) >= 2
        for chunk in begun:
            for share in balance(chunk, ranks, budget, "shared"):
                assert len(share.micro_batches) == 1
                assert sum(sequence_lengths(share.batch, "shared")) <= budget
