"""Buckets: what is packed comes out, and receive buffers are used again only when nobody reads them."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rl.sync.bucket import Bucket, packed, unpacked
from rl.sync.buffers import Buffers
from tests.rl.sync_case import KIB, assorted

CPU = torch.device("cpu")


def buckets_of(tensors: list[tuple[str, Tensor]], size: int) -> list[Bucket]:
    return list(packed(tensors, lambda: torch.empty(size, dtype=torch.uint8)))


def assert_equal(arrived: list[tuple[str, Tensor]], tensors: list[tuple[str, Tensor]]) -> None:
    assert [name for name, _ in arrived] == [name for name, _ in tensors]
    for (_, got), (name, tensor) in zip(arrived, tensors, strict=True):
        assert (got.dtype, got.shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(got, tensor), name


def test_every_tensor_comes_out_as_it_went_in() -> None:
    tensors = list(assorted())
    for size in (1000, 64 * KIB, 10 << 20):
        buckets = buckets_of(tensors, size)
        assert_equal(list(unpacked((bucket.pieces, bucket.buffer[: bucket.nbytes]) for bucket in buckets)), tensors)


@settings(deadline=None)
@given(sizes=st.lists(st.integers(0, 200), max_size=20), size=st.integers(1, 100))
def test_any_sizes_in_any_bucket(sizes: list[int], size: int) -> None:
    tensors = [(str(n), torch.arange(length) % 251) for n, length in enumerate(sizes)]
    as_bytes = [(name, tensor.to(torch.uint8)) for name, tensor in tensors]
    buckets = buckets_of(as_bytes, size)
    assert all(bucket.nbytes <= size for bucket in buckets)
    assert_equal(list(unpacked((bucket.pieces, bucket.buffer) for bucket in buckets)), as_bytes)


def test_only_what_fits_into_no_bucket_is_cut() -> None:
    tensors = [(str(n), torch.zeros(size, dtype=torch.uint8)) for n, size in enumerate([40, 40, 40, 250, 90])]
    held = [[(piece.name, piece.nbytes) for piece in bucket.pieces] for bucket in buckets_of(tensors, 100)]
    assert held == [[("0", 40), ("1", 40)], [("2", 40)], [("3", 100)], [("3", 100)], [("3", 50)], [("4", 90)]]


def test_what_fits_is_a_view_of_its_bucket() -> None:
    (bucket,) = buckets_of([("a", torch.ones(3)), ("b", torch.ones(2, dtype=torch.float64))], 64)
    bucket.buffer.zero_()
    assert all(not tensor.any() for _, tensor in unpacked([(bucket.pieces, bucket.buffer)]))


def test_a_buffer_is_used_again_when_no_tensor_lies_in_it_any_more() -> None:
    buffers = Buffers(CPU, capacity=100)
    first = buffers.get(100)
    view = first[10:20].view(torch.int16)
    where = first.data_ptr()
    del first
    second = buffers.get(100)
    assert second.data_ptr() != where  # `view` still reads the first
    del view
    third = buffers.get(60)
    assert (third.data_ptr(), third.numel()) == (where, 60)
