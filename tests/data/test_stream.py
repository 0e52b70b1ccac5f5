"""PromptStream: every sample once an epoch, and resuming anywhere continues with the very next one."""

from __future__ import annotations

from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.box import Box
from data.prompts import locus_prompt
from data.sample import EncodedImage, Sample
from data.stream import PromptStream, StreamState

IMAGE = EncodedImage(10, 10, encoded=b"x")


def samples(count: int) -> list[Sample]:
    box = Box(0, 0, 1, 1, IMAGE.frame)
    return [Sample(str(index), "test", (IMAGE, IMAGE), locus_prompt(), box) for index in range(count)]


def ids(taken: list[Sample]) -> list[str]:
    return [sample.id for sample in taken]


@given(size=st.integers(1, 12), seed=st.integers(0, 3), takes=st.lists(st.integers(0, 30), max_size=6))
def test_how_it_is_taken_does_not_change_what_comes(size: int, seed: int, takes: list[int]) -> None:
    piecewise, at_once = PromptStream(samples(size), seed), PromptStream(samples(size), seed)
    parts = [sample_id for n in takes for sample_id in ids(piecewise.take(n))]
    assert parts == ids(at_once.take(sum(takes)))
    assert piecewise.state_dict() == at_once.state_dict()


@given(size=st.integers(1, 12), epochs=st.integers(1, 4), seed=st.integers(0, 3))
def test_every_epoch_has_every_sample_once(size: int, epochs: int, seed: int) -> None:
    stream = PromptStream(samples(size), seed)
    taken = ids(stream.take(size * epochs))
    for epoch in range(epochs):
        assert sorted(taken[epoch * size : (epoch + 1) * size], key=int) == ids(samples(size))
    assert stream.epoch == epochs


@given(size=st.integers(1, 12), before=st.integers(0, 40), after=st.integers(0, 40))
def test_resuming_continues_with_the_very_next_sample(size: int, before: int, after: int) -> None:
    """Includes every exact epoch boundary: `before` a multiple of `size`."""
    straight = ids(PromptStream(samples(size), 5).take(before + after))
    first = PromptStream(samples(size), 5)
    head = ids(first.take(before))
    second = PromptStream(samples(size), 5)
    second.load_state_dict(first.state_dict())
    assert head + ids(second.take(after)) == straight


def test_epochs_differ_and_seeds_differ() -> None:
    stream = PromptStream(samples(50), seed=1)
    first, second = ids(stream.take(50)), ids(stream.take(50))
    assert first != second
    assert ids(PromptStream(samples(50), seed=2).take(50)) != first
    assert ids(PromptStream(samples(50), seed=1).take(50)) == first


def test_without_shuffling_the_order_is_the_datasets() -> None:
    assert ids(PromptStream(samples(3), seed=0, shuffle=False).take(7)) == list("0120120")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"seed": 9}, "seed 9"),
        ({"size": 4}, "number of samples 4"),
        ({"shuffle": False}, "shuffle False"),
        ({"position": 3}, "stands nowhere"),
        ({"epoch": -1}, "stands nowhere"),
    ],
)
def test_a_state_of_another_run_is_refused(change: dict[str, int], complaint: str) -> None:
    stream = PromptStream(samples(3), seed=0)
    with pytest.raises(ValueError, match=complaint):
        stream.load_state_dict(cast(StreamState, {**stream.state_dict(), **change}))


def test_nothing_to_stream_is_an_error() -> None:
    with pytest.raises(ValueError, match="empty"):
        PromptStream([], seed=0)
