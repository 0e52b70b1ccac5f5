"""Batches: failures leave their group, and cutting over ranks loses and repeats nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from verl.protocol import DataProto

from data.box import Box
from data.prompts import locus_prompt
from data.sample import EncodedImage, Sample
from rewards.score import Score
from rl.batch import BatchTotals, Group, balance, gather_rows, group_batch
from rl.records import Rollout


def sample(number: int) -> Sample:
    images = (EncodedImage(100, 80, path="scene.jpg"), EncodedImage(30, 30, path="cue.png"))
    return Sample(f"s{number}", "test", images, locus_prompt(), Box(1, 2, 30, 40, images[0].frame))


def group(number: int, lengths: list[int], prompt_tokens: int = 50) -> Group:
    rollouts = tuple(
        Rollout(f"s{number}", tuple(range(1, n + 1)), tuple(-0.1 * k for k in range(n)), "text", "stop", 0, prompt_tokens)
        for n in lengths
    )
    return Group(sample(number), rollouts, tuple(Score(0.1 * n) for n in lengths))


def test_a_group_is_a_row_and_a_missing_answer_is_an_empty_mask() -> None:
    batch = group_batch([group(0, [3, 1, 2]), group(1, [4, 2])])
    assert batch.batch["responses"].shape == (2, 3, 4)
    assert batch.batch["response_mask"].sum(-1).tolist() == [[3, 1, 2], [4, 2, 0]]
    assert batch.batch["responses"][1, 0].tolist() == [1, 2, 3, 4]
    assert batch.batch["rewards"][0].tolist() == pytest.approx([0.3, 0.1, 0.2])
    assert [s.id for s in batch.non_tensor_batch["sample"]] == ["s0", "s1"]


def test_no_group_is_an_error_not_an_empty_update() -> None:
    with pytest.raises(ValueError, match="no group"):
        group_batch([])


def many(sizes: list[tuple[int, list[int]]]) -> DataProto:
    return group_batch([group(i, lengths, prompt) for i, (prompt, lengths) in enumerate(sizes)])


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(
        st.tuples(st.integers(5, 200), st.lists(st.integers(1, 30), min_size=2, max_size=4)), min_size=1, max_size=12
    ),
    world=st.integers(1, 4),
    budget=st.integers(50, 2000),
    layout=st.sampled_from(["shared", "plain"]),
)
def test_shares_cover_the_batch_once_and_ranks_stay_in_step(
    sizes: list[tuple[int, list[int]]], world: int, budget: int, layout: str
) -> None:
    batch = many(sizes)
    shares = balance(batch, world, budget, layout)
    assert len({len(share.micro_batches) for share in shares}) == 1
    assert all(cell for share in shares for cell in share.micro_batches)
    for share in shares:
        assert sorted(row for cell in share.micro_batches for row in cell) == list(range(len(share.batch)))
        assert share.totals == BatchTotals.of(batch, world)
    rows = sorted(row for share in shares for row in share.rows if row < len(batch))
    assert rows == list(range(len(batch)))
    assert sum(float(share.batch.batch["loss_mask"].sum()) for share in shares) == float(batch.batch["loss_mask"].sum())


def test_results_come_back_in_the_order_of_the_batch() -> None:
    batch = many([(10 * n, [n, n + 1]) for n in range(1, 8)])
    shares = balance(batch, 3, 60, "shared")
    whole = gather_rows(shares, [share.batch.batch["rewards"] for share in shares], len(batch))
    assert torch.equal(whole, batch.batch["rewards"])


def test_micro_batches_respect_the_token_budget_where_groups_fit() -> None:
    batch = many([(100, [10, 10])] * 12)
    for share in balance(batch, 2, 250, "shared"):
        assert all(len(cell) <= 2 for cell in share.micro_batches)


def test_the_budget_counts_padding_where_there_is_some() -> None:
    """Groups of 110 and 30 tokens: 140 one after another, 2 · 105 and 4 · 105 as rows padded to the longest."""
    batch = many([(100, [5, 5]), (20, [5, 5]), (100, [5, 5]), (20, [5, 5])])
    for layout, budget, cells in (("shared", 140, [2, 2]), ("plain", 419, [1, 1, 2]), ("plain", 420, [2, 2])):
        (share,) = balance(batch, 1, budget, layout)
        assert sorted(len(cell) for cell in share.micro_batches) == cells


def test_in_the_plain_layout_every_answer_is_a_padded_row() -> None:
    """Rows of 60, 20 and 20, and twice 20: together 5 × 60 of 140 tokens, apart 3 × 60 and 2 × 20."""
    batch = many([(10, [50, 10, 10]), (10, [10, 10])])
    assert len(balance(batch, 1, 300, "plain")[0].micro_batches) == 1
    assert len(balance(batch, 1, 299, "plain")[0].micro_batches) == 2
