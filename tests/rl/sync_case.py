"""What weight-sync tests share: named tensors, made as they are asked for, and a process that reads them."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import torch
from torch import Tensor

from rl.sync.receiver import Arrival, Feed, Way
from rl.sync.seats import Seat
from rl.sync.sender import Sender
from rl.weights import checksum

KIB, MIB = 1 << 10, 1 << 20
TIMEOUT_S = 60.0


def assorted(seed: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Several dtypes, a scalar, an empty tensor, one not contiguous, and two that no bucket of 64 KiB holds."""
    generator = torch.Generator().manual_seed(seed)

    def floats(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    yield "embedding", floats(300, 200)
    for layer in range(20):
        yield f"{layer}.weight", floats(40, 33).to(torch.bfloat16)
        yield f"{layer}.scale", floats(1).reshape(())
        yield f"{layer}.packed", torch.randint(0, 255, (7 * layer,), dtype=torch.uint8, generator=generator)
    yield "transposed", floats(30, 50).t()
    yield "steps", torch.arange(5)
    yield "head", floats(100, 1000)


def large(mib: int) -> Iterator[tuple[str, Tensor]]:
    """One MiB at a time, so that nobody has to hold all."""
    for number in range(mib):
        yield f"{number}.weight", torch.arange(MIB // 4, dtype=torch.float32) + number


@contextmanager
def sending(
    tensors: Iterable[tuple[str, Tensor]], version: int, medium: str = "shared_memory", readers: int = 1
) -> Iterator[Arrival]:
    """A learner's side in a thread: `tensors` on their way to so many readers, in buckets of 64 KiB."""
    with closing(Sender(medium, "127.0.0.1", readers, 64 * KIB, TIMEOUT_S)) as sender, ThreadPoolExecutor(1) as thread:
        sent = thread.submit(sender.send, version, tensors)
        yield way_of(sender, medium).arrival(version)
        sent.exception()


def way_of(sender: Sender, medium: str) -> Way:
    return Way(medium, (Feed(Seat.here(torch.device("cpu")), sender.address),), TIMEOUT_S)


def peak_memory() -> int:
    """The most memory this process ever had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB


class Reader:
    """Reads what arrives, in a process of its own."""

    def __init__(self) -> None:
        torch.set_num_threads(1)

    def read(self, tensors: Iterable[tuple[str, Tensor]]) -> str:
        return checksum(tensors)

    def read_and_keep(self, tensors: Iterable[tuple[str, Tensor]]) -> str:
        """The checksum is taken when all have arrived, as vLLM loads a layer when it is whole."""
        return checksum(list(tensors))

    def growth(self, tensors: Iterable[tuple[str, Tensor]]) -> int:
        """By how many bytes reading raised this process's peak."""
        before = peak_memory()
        checksum(tensors)
        return peak_memory() - before

    def refuse(self, tensors: Iterable[tuple[str, Tensor]], after: int) -> None:
        stream = iter(tensors)
        for _ in range(after):
            next(stream)
        stream.close()  # type: ignore[attr-defined]

    def exit(self, tensors: Iterable[tuple[str, Tensor]], after: int) -> None:
        for number, _ in enumerate(tensors):
            if number == after:
                os._exit(7)
