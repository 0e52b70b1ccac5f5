"""Box mass and its gradients against the whole softmax, written out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rl.attention_mass import CHUNK_BYTES, Span, drop_causal, measure, with_gradient

TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-6}
CPU = torch.device("cpu")


def span(batch: int, first: int, rows: list[int], columns: list[int]) -> Span:
    return Span.of(batch, first, torch.tensor(rows), torch.tensor(columns), CPU)


# Two samples in row 0 (packed), one in row 1 after two tokens of padding; a box token after some of the rows.
SPANS = (span(0, 0, [5, 6, 9, 11], [1, 2, 7]), span(0, 12, [20, 21, 22], [13, 15]), span(1, 2, [14, 17], [4, 5, 6]))
LENGTH = 24


def visible() -> Tensor:
    """[2, 1, L, L]: causal, each sample sees itself; padding sees itself."""
    sample = torch.tensor([[0] * 12 + [1] * 12, [-1, -1] + [0] * 22])
    order = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    same = (sample[:, :, None] == sample[:, None]) & (sample >= 0)[:, None]
    return (same & order | torch.eye(LENGTH, dtype=torch.bool))[:, None]


def tensors(dtype: torch.dtype, heads: int = 6, key_heads: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    shape = (2, LENGTH, heads, 8)
    query = 2 * torch.randn(shape, generator=generator, dtype=dtype)
    key = 2 * torch.randn((2, LENGTH, key_heads, 8), generator=generator, dtype=dtype)
    return query.transpose(1, 2).requires_grad_(), key.transpose(1, 2).requires_grad_()


def mass(query: Tensor, key: Tensor, mask: Tensor | None, spans: tuple[Span, ...], chunk_bytes: int = CHUNK_BYTES) -> Tensor:
    known = measure(query, key, mask, spans, 0.4, chunk_bytes)
    return with_gradient(query, key, *known, mask, spans, 0.4, chunk_bytes)


def whole_softmax(query: Tensor, key: Tensor, mask: Tensor, spans: tuple[Span, ...]) -> Tensor:
    scores = query @ key.repeat_interleave(query.shape[1] // key.shape[1], 1).mT * 0.4
    map_BLL = scores.masked_fill(~mask, -torch.inf).softmax(-1).mean(1)
    return torch.cat([map_BLL[s.batch][list(s.rows)][:, list(s.columns)].sum(-1) for s in spans])


def gradients(values: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, ...]:
    weights = torch.linspace(-1, 2, len(values), dtype=values.dtype)
    return torch.autograd.grad((weights * values).sum(), (query, key))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("heads", [(6, 6), (6, 2), (6, 1)])
@pytest.mark.parametrize("chunk_bytes", [1, 500, 3000, CHUNK_BYTES])
def test_equals_the_whole_softmax(dtype: torch.dtype, heads: tuple[int, int], chunk_bytes: int) -> None:
    query, key = tensors(dtype, *heads)
    expected, seen = whole_softmax(query, key, visible(), SPANS), mass(query, key, None, SPANS, chunk_bytes)
    torch.testing.assert_close(seen, expected, rtol=0, atol=TOLERANCE[dtype])
    for ours, theirs in zip(gradients(seen, query, key), gradients(expected, query, key), strict=True):
        assert theirs.abs().max() > 0.01
        torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE[dtype])


def general_mask() -> Tensor:
    """Beyond order: some earlier keys are hidden from some rows."""
    holes = torch.rand(2, 1, LENGTH, LENGTH, generator=torch.Generator().manual_seed(5)) < 0.4
    return visible() & ~(holes & ~torch.eye(LENGTH, dtype=torch.bool))


@pytest.mark.parametrize("chunk_bytes", [1, 3000, CHUNK_BYTES])
@pytest.mark.parametrize("additive", [False, True])
def test_any_mask_hides_what_it_hides(chunk_bytes: int, additive: bool) -> None:
    query, key = tensors(torch.float64)
    mask = general_mask()
    given_mask = (
        torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, torch.finfo(torch.float64).min) if additive else mask
    )
    assert drop_causal(given_mask, SPANS) is given_mask
    expected, seen = whole_softmax(query, key, mask, SPANS), mass(query, key, given_mask, SPANS, chunk_bytes)
    torch.testing.assert_close(seen, expected, rtol=0, atol=1e-14)
    for ours, theirs in zip(gradients(seen, query, key), gradients(expected, query, key), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)


def test_one_mask_for_all_rows_of_a_batch() -> None:
    query, key = tensors(torch.float64)
    spans = (span(0, 0, [9, 20], [1, 2]), span(1, 0, [14], [3]))
    mask = general_mask()[:1] | torch.zeros(1, 1, LENGTH, LENGTH, dtype=torch.bool)
    expected = whole_softmax(query, key, mask.expand(2, -1, -1, -1), spans)
    torch.testing.assert_close(mass(query, key, mask, spans), expected, rtol=0, atol=1e-14)


def test_a_mask_of_padding_alone() -> None:
    query, key = tensors(torch.float64)
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    mask[1, :3] = 0  # one token more than the span leaves out
    whole = visible()
    whole[1, :, 3:, :3] = False
    torch.testing.assert_close(mass(query, key, mask, SPANS), whole_softmax(query, key, whole, SPANS), rtol=0, atol=1e-14)


def test_a_mask_that_is_order_alone_is_dropped() -> None:
    assert drop_causal(visible(), SPANS) is None


@pytest.mark.parametrize(("row", "key"), [(5, 6), (20, 3)])
def test_keys_behind_the_row_or_of_another_sample_are_refused(row: int, key: int) -> None:
    mask = visible()
    mask[0, 0, row, key] = True
    with pytest.raises(ValueError, match="must be causal"):
        drop_causal(mask, SPANS)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 60.0), columns=st.sets(st.integers(0, LENGTH - 1), min_size=1))
def test_mass_is_a_share_and_of_all_columns_it_is_one(seed: int, scale: float, columns: set[int]) -> None:
    torch.manual_seed(seed)
    query, key = (scale * torch.randn(1, 4, LENGTH, 8) for _ in range(2))
    rows = list(range(3, LENGTH))
    share = mass(query, key, None, (span(0, 0, rows, sorted(columns)),), 4000)
    assert share.min() >= 0 and share.max() <= 1 + 1e-6
    whole = mass(query, key, None, (span(0, 0, rows, list(range(LENGTH))),), 4000)
    torch.testing.assert_close(whole, torch.ones(len(rows)), rtol=0, atol=1e-6)
    others = [column for column in range(LENGTH) if column not in columns] or [LENGTH - 1]
    if len(others) + len(columns) == LENGTH:
        rest = mass(query, key, None, (span(0, 0, rows, others),), 4000)
        torch.testing.assert_close(share + rest, torch.ones(len(rows)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_scored_in_float32(dtype: torch.dtype) -> None:
    """The same numbers in float32: nothing but the inputs and the gradients is rounded."""
    query, key = (tensor.detach().to(dtype).requires_grad_() for tensor in tensors(torch.float32))
    wide_query, wide_key = (tensor.detach().float().requires_grad_() for tensor in (query, key))
    share, wide = mass(query, key, None, SPANS), mass(wide_query, wide_key, None, SPANS)
    assert share.dtype == torch.float32
    assert torch.equal(share, wide)
    expected = gradients(wide, wide_query, wide_key)
    for ours, theirs in zip(gradients(share, query, key), expected, strict=True):
        assert torch.equal(ours, theirs.to(dtype))


def test_autocast_around_it_changes_nothing() -> None:
    query, key = tensors(torch.float32)
    expected = mass(query, key, None, SPANS)
    with torch.autocast("cpu", torch.bfloat16):
        share = mass(query, key, None, SPANS)
        (gradient,) = torch.autograd.grad(share.sum(), query)
    assert torch.equal(share, expected)
    assert torch.equal(gradient, torch.autograd.grad(expected.sum(), query)[0])


class _Largest(TorchDispatchMode):
    """The most elements that any tensor has which an operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


def test_nothing_larger_than_a_chunk_of_scores_exists() -> None:
    """Length 2,000: a chunk of 512 KiB is 131,072 scores, the queries have 32,000, one head's map would have 4 M."""
    query, key = torch.randn(1, 4, 2000, 4, requires_grad=True), torch.randn(1, 1, 2000, 4, requires_grad=True)
    spans = (span(0, 0, list(range(1500, 1900)), list(range(100, 140))),)
    with _Largest() as largest:
        mass(query, key, None, spans, chunk_bytes=512 << 10).sum().backward()
    assert 100_000 < largest.numel <= 131_072


def test_a_second_derivative_is_refused() -> None:
    query, key = tensors(torch.float64)
    (first,) = torch.autograd.grad(mass(query, key, None, SPANS).square().sum(), query, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
