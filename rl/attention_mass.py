"""How much of each chosen row's attention falls on chosen columns, without the attention map, values and gradients.

    b_i = mean over heads h of  Σ_{j∈box} p_ijh,      p_ijh = exp(s_ijh − lse_ih),      s_ijh = scaling · q_ih · k_jh

A row of a causal softmax sums to 1, so a row needs its log-sum-exp and the box columns, nothing else of the map. Scores
exist for a chunk of rows at a time (CHUNK_BYTES), forward and backward; between the two only lse stays. Backward:

    ∂b_i/∂s_ijh = p_ijh (1[j∈box] − b_ih) / H
    ∂b_i/∂q_ih  = scaling/H · ( Σ_{j∈box} p_ijh k_jh − b_ih Σ_j p_ijh k_jh )
    ∂b_i/∂k_jh  = scaling/H · ( 1[j∈box] p_ijh q_ih − p_ijh b_ih q_ih )

Key heads are never repeated for their query heads. Half precision is scored in float32; float64 stays float64.

Shape suffixes: B rows of the batch, H query heads, K key heads, G = H/K query heads a key head, L tokens a row, D head
dimension, S samples, N chosen rows of all samples, n chosen rows of a chunk, J keys a chunk can see, C box columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

CHUNK_BYTES = 64 << 20  # scores that exist at once


@dataclass(frozen=True)
class Span:
    """One sample's part of a batch: tokens `first` … of row `batch`, its chosen rows and its box columns, both ascending.

    Kept on the host, with copies of the indices on the device, so that a chunk's bounds cost no synchronisation.
    """

    batch: int
    first: int
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    device_rows: Tensor
    device_columns: Tensor

    @classmethod
    def of(cls, batch: int, first: int, rows: Tensor, columns: Tensor, device: torch.device) -> Span:
        indices = (index.to(device, non_blocking=True) for index in (rows, columns))
        return cls(batch, first, tuple(rows.tolist()), tuple(columns.tolist()), *indices)


@dataclass(frozen=True)
class _Chunk:
    """Some rows of a span: rows `start`:`stop` of its list, which see keys `first`:`end` at most."""

    span: Span
    start: int
    stop: int
    end: int
    place: slice  # where these rows lie among the N

    @property
    def scores(self) -> int:
        """How many a head has."""
        return (self.stop - self.start) * (self.end - self.span.first)

    @property
    def rows(self) -> Tensor:
        return self.span.device_rows[self.start : self.stop]

    @property
    def columns(self) -> Tensor:
        """Box columns among the chunk's keys, counted from the first of them."""
        visible = sum(column < self.end for column in self.span.columns)
        return self.span.device_columns[:visible] - self.span.first


def _chunks(spans: tuple[Span, ...], heads: int, itemsize: int, budget: int) -> Iterator[_Chunk]:
    offset = 0
    for span in spans:
        keys = span.rows[-1] + 1 - span.first
        step = max(1, budget // (heads * keys * itemsize))
        for start in range(0, len(span.rows), step):
            stop = min(start + step, len(span.rows))
            yield _Chunk(span, start, stop, span.rows[stop - 1] + 1, slice(offset + start, offset + stop))
        offset += len(span.rows)


class _Scores:
    """Queries, keys and scores of one layer, chunk by chunk. The scores of a chunk overwrite those of the one before."""

    def __init__(
        self, query: Tensor, key: Tensor, mask: Tensor | None, spans: tuple[Span, ...], scaling: float, chunk_bytes: int
    ) -> None:
        self.query, self.key, self.mask, self.scaling = query, key, mask, scaling
        self.heads, self.key_heads = query.shape[1], key.shape[1]
        self.dtype = torch.promote_types(query.dtype, torch.float32)
        self.tensor_cores = query.is_cuda and query.dtype == torch.bfloat16
        self.chunks = tuple(_chunks(spans, self.heads, self.dtype.itemsize, chunk_bytes))
        self._keys: tuple[int, Tensor] | None = None
        largest = 0 if self.tensor_cores else max(chunk.scores for chunk in self.chunks) * self.heads
        self._buffer = query.new_empty(largest, dtype=self.dtype)

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """Batched product with a float32 (or float64) result; of bfloat16 factors where the device has units for them."""
        if self.tensor_cores:
            return torch.bmm(a.bfloat16(), b.bfloat16(), out_dtype=torch.float32)
        return torch.bmm(a, b)

    def subtract(self, total: Tensor, a: Tensor, b: Tensor) -> None:
        """total −= a @ b."""
        if self.tensor_cores:
            total -= self.matmul(a, b)
        else:
            total.baddbmm_(a, b, alpha=-1)

    def _product(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Scores in one buffer: fresh pages for every chunk would double the time on a CPU."""
        if self.tensor_cores:
            return self.matmul(queries, keys.mT).mul_(self.scaling)
        shape = (*queries.shape[:2], keys.shape[1])
        scores = self._buffer[: math.prod(shape)].view(shape)
        return torch.bmm(queries.mul_(self.scaling), keys.mT, out=scores)

    def grouped(self, values_HnX: Tensor) -> Tensor:
        """[H, n, …] → [K, G·n, …]: the query heads of a key head side by side."""
        return values_HnX.reshape(self.key_heads, -1, *values_HnX.shape[2:])

    def queries(self, chunk: _Chunk) -> Tensor:
        """[K, G·n, D]."""
        return self.grouped(self.query[chunk.span.batch][:, chunk.rows].to(self.dtype))

    def keys(self, chunk: _Chunk) -> Tensor:
        """[K, J, D]."""
        batch = chunk.span.batch
        if self._keys is None or self._keys[0] != batch:
            self._keys = (batch, self.key[batch].to(self.dtype))
        return self._keys[1][:, chunk.span.first : chunk.end]

    def scores(self, chunk: _Chunk) -> Tensor:
        """[K, G·n, J], −inf where the mask hides a key."""
        scores = self._product(self.queries(chunk), self.keys(chunk))
        self._hide(chunk, scores.view(self.heads, chunk.stop - chunk.start, -1))
        return scores

    def _hide(self, chunk: _Chunk, scores_HnJ: Tensor) -> None:
        first, rows = chunk.span.first, chunk.rows
        sees_all = chunk.span.rows[chunk.start] + 1  # keys before this one are visible to every row, if only order hides
        if sees_all < chunk.end:
            later = torch.arange(sees_all, chunk.end, device=rows.device) > rows[:, None]
            scores_HnJ[..., sees_all - first :].masked_fill_(later, -torch.inf)
        if self.mask is None:
            return
        if self.mask.dim() == 2:  # flash attention's: padding alone
            scores_HnJ.masked_fill_(~self.mask[chunk.span.batch, first : chunk.end].bool(), -torch.inf)
            return
        # One mask for all heads, and for all rows of the batch where its first dimension is 1.
        mask_nJ = self.mask[min(chunk.span.batch, self.mask.shape[0] - 1), 0][rows, first : chunk.end]
        if mask_nJ.dtype == torch.bool:
            scores_HnJ.masked_fill_(~mask_nJ, -torch.inf)
        else:
            scores_HnJ.add_(mask_nJ)


def drop_causal(mask: Tensor | None, spans: tuple[Span, ...]) -> Tensor | None:
    """None if `mask` says no more about the chosen rows than order does, which is cheaper to apply; else `mask`.

    Raises ValueError when a chosen row sees a key before its sample's first token or after itself, because such keys are
    never scored. Additive masks are taken as they are.
    """
    if mask is None or mask.dim() == 2 or mask.dtype != torch.bool:
        return mask
    ordered = True
    for span in spans:
        seen_NL = mask[min(span.batch, mask.shape[0] - 1), 0][span.device_rows]
        keys_L = torch.arange(mask.shape[-1], device=mask.device)
        causal_NL = (keys_L >= span.first) & (keys_L <= span.device_rows[:, None])
        if (seen_NL & ~causal_NL).any():
            raise ValueError(
                f"the attention mask shows the query-image tokens of batch row {span.batch} keys after themselves or before "
                f"token {span.first}, where their sample begins; attention must be causal, a packed sample alone with itself"
            )
        ordered = ordered and bool((seen_NL == causal_NL).all())
    return None if ordered else mask


def measure(
    query: Tensor, key: Tensor, mask: Tensor | None, spans: tuple[Span, ...], scaling: float, chunk_bytes: int = CHUNK_BYTES
) -> tuple[Tensor, Tensor]:
    """(b [N], lse [H, N]) of queries [B, H, L, D] and keys [B, K, L, D], as they enter the attention (RoPE applied)."""
    layer = _Scores(query, key, mask, spans, scaling, chunk_bytes)
    chosen = sum(len(span.rows) for span in spans)
    mass_N = query.new_empty(chosen, dtype=layer.dtype)
    lse_HN = query.new_empty(layer.heads, chosen, dtype=layer.dtype)
    with torch.no_grad(), torch.autocast(query.device.type, enabled=False):  # float32 scores, whatever surrounds them
        for chunk in layer.chunks:
            scores = layer.scores(chunk)
            peak = scores.amax(-1, keepdim=True)
            scores.sub_(peak).exp_()
            total = scores.sum(-1)
            box = scores[..., chunk.columns].sum(-1) / total
            mass_N[chunk.place] = box.view(layer.heads, -1).mean(0)
            lse_HN[:, chunk.place] = (peak[..., 0] + total.log()).view(layer.heads, -1)
    return mass_N, lse_HN


class _MassGradient(torch.autograd.Function):
    """The identity on a mass that is known already; its backward recomputes the scores and reaches queries and keys."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        query: Tensor,
        key: Tensor,
        mass_N: Tensor,
        lse_HN: Tensor,
        mask: Tensor | None,
        spans: tuple[Span, ...],
        scaling: float,
        chunk_bytes: int,
    ) -> Tensor:
        ctx.save_for_backward(query, key, lse_HN, mask)
        ctx.spans, ctx.scaling, ctx.chunk_bytes = spans, scaling, chunk_bytes
        return mass_N.clone()

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: FunctionCtx, grad_N: Tensor) -> tuple[Tensor | None, ...]:
        query, key, lse_HN, mask = ctx.saved_tensors
        layer = _Scores(query, key, mask, ctx.spans, ctx.scaling, ctx.chunk_bytes)
        grad_query, grad_key = torch.zeros_like(query), torch.zeros_like(key, dtype=layer.dtype)
        weight_N = grad_N.to(layer.dtype) * (ctx.scaling / layer.heads)
        with torch.autocast(query.device.type, enabled=False):
            for chunk in layer.chunks:
                _backward_chunk(layer, chunk, lse_HN, weight_N, grad_query, grad_key)
        return grad_query, grad_key.to(key.dtype), *(None,) * 6


def _backward_chunk(
    layer: _Scores, chunk: _Chunk, lse_HN: Tensor, weight_N: Tensor, grad_query: Tensor, grad_key: Tensor
) -> None:
    """Writes the chunk's rows of `grad_query` [B, H, L, D] and adds to `grad_key` [B, K, L, D]."""
    span, columns = chunk.span, chunk.columns
    lse = layer.grouped(lse_HN[:, chunk.place])[..., None]
    weight = layer.grouped(weight_N[chunk.place].expand(layer.heads, -1))[..., None]
    shares = layer.scores(chunk).sub_(lse).exp_()  # p [K, G·n, J]
    in_box = shares[..., columns]
    box = in_box.sum(-1, keepdim=True)  # b_ih
    queries, keys = layer.queries(chunk), layer.keys(chunk)
    toward_query = layer.matmul(in_box, keys[:, columns]) - box * layer.matmul(shares, keys)
    grad_query[span.batch][:, chunk.rows] = (weight * toward_query).view(layer.heads, -1, queries.shape[-1]).to(grad_query)
    weighted = weight * queries
    grad_keys = grad_key[span.batch][:, span.first : chunk.end]
    layer.subtract(grad_keys, shares.mT, box * weighted)
    grad_keys[:, columns] += layer.matmul(in_box.mT, weighted)


def with_gradient(
    query: Tensor,
    key: Tensor,
    mass_N: Tensor,
    lse_HN: Tensor,
    mask: Tensor | None,
    spans: tuple[Span, ...],
    scaling: float,
    chunk_bytes: int = CHUNK_BYTES,
) -> Tensor:
    """The mass that `measure` gave for these arguments, now differentiable in `query` and `key`."""
    attached: Tensor = _MassGradient.apply(query, key, mass_N, lse_HN, mask, spans, scaling, chunk_bytes)
    return attached
