"""What is read ahead is read once, elsewhere, and changes nothing: what comes, where errors show, where a stream stands."""

from __future__ import annotations

import gc
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import overload

import pytest

from data.read_ahead import ReadAhead
from data.sample import Sample
from data.stream import PromptStream
from tests.data.test_stream import ids, samples

PATIENCE_S = 20.0


@dataclass
class Watched(Sequence[Sample]):
    """Samples that say who read them; the `damaged` one cannot be read."""

    samples: list[Sample]
    damaged: int | None = None
    read: list[int] = field(default_factory=list)
    threads: set[threading.Thread] = field(default_factory=set)
    has_read: threading.Condition = field(default_factory=threading.Condition)

    def __len__(self) -> int:
        return len(self.samples)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        assert isinstance(index, int)
        with self.has_read:
            self.read.append(index)
            self.threads.add(threading.current_thread())
            self.has_read.notify_all()
        if index == self.damaged:
            raise ValueError(f"sample {index} is damaged")
        return self.samples[index]

    def wait_for(self, count: int) -> None:
        with self.has_read:
            assert self.has_read.wait_for(lambda: len(self.read) >= count, PATIENCE_S)


def stream_of(watched: Watched) -> PromptStream:
    return PromptStream(watched, seed=0, shuffle=False)


def test_the_next_samples_are_read_before_they_are_asked_for_in_another_thread_and_once() -> None:
    watched = Watched(samples(9))
    stream = stream_of(watched)
    assert ids(stream.take(3)) == ["0", "1", "2"]
    watched.wait_for(6)
    assert watched.read == [0, 1, 2, 3, 4, 5]
    assert stream.position == 3
    assert ids(stream.take(3)) == ["3", "4", "5"]
    watched.wait_for(9)
    assert watched.read == list(range(9))
    (reader,) = watched.threads - {threading.current_thread()}
    assert reader.name.startswith("samples")


def test_a_smaller_take_leaves_what_was_begun_for_the_next() -> None:
    watched = Watched(samples(20))
    stream = stream_of(watched)
    taken = [ids(stream.take(n)) for n in (6, 2, 5, 0, 4)]
    assert [sample_id for part in taken for sample_id in part] == [str(index) for index in range(17)]
    watched.wait_for(17)
    assert sorted(watched.read) == sorted(set(watched.read))


def test_an_epochs_end_is_read_across() -> None:
    watched = Watched(samples(4))
    stream = stream_of(watched)
    assert ids(stream.take(3)) == ["0", "1", "2"]
    watched.wait_for(6)
    assert watched.read == [0, 1, 2, 3, 0, 1]
    assert (stream.epoch, stream.position) == (0, 3)
    assert ids(stream.take(3)) == ["3", "0", "1"]


def test_samples_that_were_not_begun_come_too() -> None:
    reader = ReadAhead(Watched(samples(9)))
    reader.begin([1, 2, 3])
    assert ids(reader.read([1, 7, 2])) == ["1", "7", "2"]
    reader.begin([4, 5])
    reader.begin([5, 6])
    assert ids(reader.read([5, 6])) == ["5", "6"]


def test_a_stream_that_is_put_elsewhere_gives_what_is_there() -> None:
    stream = stream_of(Watched(samples(9)))
    stream.take(2)
    state = stream.state_dict()
    stream.take(3)
    stream.load_state_dict(state)
    assert ids(stream.take(3)) == ["2", "3", "4"]


def test_a_damaged_sample_is_raised_when_it_is_taken_and_the_stream_stays_before_it() -> None:
    watched = Watched(samples(9), damaged=4)
    stream = stream_of(watched)
    stream.take(3)
    watched.wait_for(6)  # read ahead, and nobody was told
    for _ in range(2):
        with pytest.raises(ValueError, match="sample 4 is damaged"):
            stream.take(3)
        assert stream.state_dict()["position"] == 3
    assert ids(stream.take(1)) == ["3"]


def test_the_thread_ends_with_its_stream() -> None:
    watched = Watched(samples(9))
    stream = stream_of(watched)
    stream.take(3)
    watched.wait_for(6)
    (reader,) = watched.threads - {threading.current_thread()}
    assert reader.is_alive()
    del stream
    gc.collect()
    reader.join(PATIENCE_S)
    assert not reader.is_alive()


@dataclass
class Held(Watched):
    """Samples that come when the test lets them go on."""

    going_on: threading.Event = field(default_factory=threading.Event)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        sample = super().__getitem__(index)
        self.going_on.wait(PATIENCE_S)
        return sample


def test_what_is_given_up_is_not_read() -> None:
    held = Held(samples(9))
    reader = ReadAhead(held)
    reader.begin([1, 2, 3])
    held.wait_for(1)
    reader.begin([7])
    held.going_on.set()
    assert ids(reader.read([7])) == ["7"]
    assert held.read == [1, 7]


def test_nothing_more_is_read_for_a_stream_that_is_gone() -> None:
    held = Held(samples(9))
    reader = ReadAhead(held)
    reader.begin([1, 2, 3])
    held.wait_for(1)
    (thread,) = held.threads
    del reader
    gc.collect()
    held.going_on.set()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    assert held.read == [1]
