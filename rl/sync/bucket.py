"""Tensors into buckets of bytes and out again.

A tensor that fits into a bucket is never cut, so it comes out as a view; a larger one is cut over buckets of its own and
put together on arrival. So neither side needs more room than its buckets and the one tensor in hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rl.weights import NamedTensors, dtype_name

ALIGNMENT = 16  # bytes; the widest element has 16


@dataclass(frozen=True, slots=True)
class Piece:
    """`nbytes` of a tensor of `total` bytes, from its byte `offset` on, at byte `start` of a bucket."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int
    offset: int
    total: int

    @property
    def whole(self) -> bool:
        return self.nbytes == self.total

    @property
    def last(self) -> bool:
        return self.offset + self.nbytes == self.total


@dataclass(frozen=True, slots=True)
class Bucket:
    """The first `nbytes` of a buffer, and what lies in them."""

    buffer: Tensor
    nbytes: int
    pieces: tuple[Piece, ...]


def _bytes_of(tensor: Tensor) -> Tensor:
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8) if flat.numel() else torch.empty(0, dtype=torch.uint8)


def packed(tensors: NamedTensors, next_buffer: Callable[[], Tensor]) -> Iterator[Bucket]:
    """Copy tensors, in their order, into byte buffers; `next_buffer` is asked for one when one is needed."""
    buffer, used = torch.empty(0, dtype=torch.uint8), 0
    pieces: list[Piece] = []
    for name, tensor in tensors:
        content = _bytes_of(tensor)
        offset, total = 0, content.numel()
        while True:
            if pieces and used + total - offset > buffer.numel():
                yield Bucket(buffer, pieces[-1].start + pieces[-1].nbytes, tuple(pieces))
                pieces = []
            if not pieces:
                buffer, used = next_buffer(), 0
            size = min(buffer.numel() - used, total - offset)
            buffer[used : used + size].copy_(content[offset : offset + size])
            pieces.append(Piece(name, dtype_name(tensor), tuple(tensor.shape), used, size, offset, total))
            used += -(-size // ALIGNMENT) * ALIGNMENT
            offset += size
            if offset == total:
                break
    if pieces:
        yield Bucket(buffer, pieces[-1].start + pieces[-1].nbytes, tuple(pieces))


def unpacked(buckets: Iterable[tuple[tuple[Piece, ...], Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of (pieces, buffer) pairs. They are views of the buffer, which must not change while one is in use."""
    whole: Tensor | None = None
    for pieces, buffer in buckets:
        for piece in pieces:
            content = buffer[piece.start : piece.start + piece.nbytes]
            if not piece.whole:
                if piece.offset == 0:
                    whole = torch.empty(piece.total, dtype=torch.uint8, device=buffer.device)
                assert whole is not None
                whole[piece.offset : piece.offset + piece.nbytes].copy_(content)
                if not piece.last:
                    continue
                content, whole = whole, None
            yield piece.name, content.view(getattr(torch, piece.dtype)).reshape(piece.shape)
            del content
        del buffer
