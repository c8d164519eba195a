"""Causal attention of spans on a CPU: blocks of queries of like sizes are one batched product.

    span      |-- 64 --|-- 64 --|- 40 -|              keys of a block: the prefix, and the span up to its last query
    blocks    q 64, k 64    q 64, k 128    q 40, k 168

Half of a square of scores is never computed, and no block's scores are larger than BLOCK times the keys. torch's own
kernels take one span at a time, whose slices cost much in the backward pass.

Legend: T tokens, H heads, G heads of keys and values, D width of a head, n blocks, q queries, k keys of a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import FunctionCtx

from lightning_mllm.spans import Spans, recurring

BLOCK = 64
"""Queries of a block."""
QUERIES = 8
"""Of which the queries of a batched product are a multiple."""
SPARE = 1.25
"""Keys of the longest block of a batched product, by those of the shortest."""

Block = tuple[int, int, int, int, int]
"""Start of a span, first query, end of the queries, start and end of the prefix."""


def queries_of(block: Block) -> int:
    """How many there are."""
    _, first, end, _, _ = block
    return end - first


def keys_of(block: Block) -> int:
    """How many its last query attends to."""
    start, _, end, before, after = block
    return after - before + end - start


@dataclass(frozen=True, kw_only=True)
class Batched:
    """Blocks that are one batched product; padding repeats their first tokens.

    Vectors are numbered as in f[T*H, D], and stand in the order of blocks, heads and tokens: the heads of a block are
    matrices beside one another, as a batched product reads them without a copy.
    """

    size: tuple[int, int, int]
    """n, q, k"""
    queries: Int[Tensor, " nHq"]
    """Numbers of the vectors."""
    keys: Int[Tensor, " nHk"]
    mask: Float[Tensor, "n 1 q k"]
    """0 where a query attends to a key, else -inf; a query of padding attends to the first key."""
    gradients: Int[Tensor, " nHq"]
    """As `queries`; T*H, a vector of zeros, for padding."""


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """All blocks of a batch."""

    batched: tuple[Batched, ...]
    rows: Int[Tensor, " TH"]
    """Of each vector the number of its query, counted through the n*H*q queries of one product after the other."""


def blocks_of(spans: Spans, heads: int) -> Blocks:
    """The blocks of a batch, by their sizes; on the host."""
    left: list[Block] = [
        (start, first, min(first + BLOCK, end), *prefix)
        for (start, end), prefix in zip(spans.own, spans.prefixes, strict=True)
        for first in range(start, end, BLOCK)
    ]
    left.sort(key=lambda block: (keys_of(block), queries_of(block)))
    vectors = spans.own[-1][1] * heads
    found: list[Batched] = []
    while left:
        most = max(keys_of(left[0]) * SPARE, keys_of(left[0]) + 8)
        least = (queries_of(left[0]) - 8) / SPARE
        like = [keys_of(block) <= most and queries_of(block) >= least for block in left]
        found.append(_batched([block for block, fits in zip(left, like, strict=True) if fits], heads, vectors))
        left = [block for block, fits in zip(left, like, strict=True) if not fits]
    queries = torch.cat([each.gradients for each in found])
    real = (queries < vectors).nonzero()[:, 0]
    return Blocks(batched=tuple(found), rows=torch.empty_like(real).index_copy_(0, queries[real], real))


def _batched(blocks: Sequence[Block], heads: int, vectors: int) -> Batched:
    start, first, end, before, after = torch.tensor(blocks).T[..., None]
    prefix, own = after - before, end - first
    past = prefix + first - start
    row = torch.arange(recurring(int(own.max()), QUERIES))
    column = torch.arange(recurring(int((past + own).max())))
    real = row < own
    keys = torch.where(column < prefix, before + column, start + column - prefix)
    known = column < past + own
    attended = (column <= (row + past).unsqueeze(-1)) & known.unsqueeze(1)
    attended = torch.where(real.unsqueeze(-1), attended, column == 0)
    queries = _vectors(torch.where(real, first + row, first), heads)
    return Batched(
        size=(len(blocks), len(row), len(column)),
        queries=queries.flatten(),
        keys=_vectors(torch.where(known, keys, keys[:, :1]), heads).flatten(),
        mask=torch.zeros(attended.shape).masked_fill_(~attended, float("-inf")).unsqueeze(1),
        gradients=torch.where(real.unsqueeze(1), queries, vectors).flatten(),
    )


def _vectors(tokens: Int[Tensor, "n k"], heads: int) -> Int[Tensor, "n H k"]:
    return tokens.unsqueeze(1) * heads + torch.arange(heads)[:, None]


def blocked_attention(
    q: Float[Tensor, "T H D"],
    k: Float[Tensor, "T G D"],
    v: Float[Tensor, "T G D"],
    blocks: Blocks,
    scaling: float | None = None,
) -> Float[Tensor, "T H D"]:
    """Softmax in float32 at least, products in the dtype of the values.

    Args:
        blocks: Made for H heads.
    """
    if (repeated := q.shape[1] // k.shape[1]) > 1:
        k, v = k.repeat_interleave(repeated, 1), v.repeat_interleave(repeated, 1)
    vectors = (each.reshape(-1, q.shape[-1]) for each in (q, k, v))
    found = _Blocked.apply(*vectors, blocks, q.shape[-1] ** -0.5 if scaling is None else scaling)
    assert isinstance(found, Tensor)
    return found.view(q.shape)


def _taken(vectors: Float[Tensor, "TH D"], index: Int[Tensor, " nHk"], length: int) -> Float[Tensor, "nH k D"]:
    return vectors.index_select(0, index).view(-1, length, vectors.shape[1])


class _Context(FunctionCtx):
    blocks: Blocks
    scaling: float
    saved_tensors: tuple[Tensor, ...]


class _Blocked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, q: Tensor, k: Tensor, v: Tensor, blocks: Blocks, scaling: float) -> Tensor:
        weights, found = list[Tensor](), list[Tensor]()
        exact = torch.promote_types(q.dtype, torch.float32)
        for each in blocks.batched:
            number, queries, keys = each.size
            scores = torch.bmm(_taken(q, each.queries, queries), _taken(k, each.keys, keys).transpose(1, 2)).to(exact)
            scores = torch.add(each.mask, scores.unflatten(0, (number, -1)), alpha=scaling)
            weights.append(torch.softmax(scores, -1).to(v.dtype).flatten(0, 1))
            found.append(torch.bmm(weights[-1], _taken(v, each.keys, keys)).flatten(0, 1))
        ctx.save_for_backward(q, k, v, *weights)
        ctx.blocks, ctx.scaling = blocks, scaling
        return torch.cat(found).index_select(0, blocks.rows)

    @staticmethod
    def backward(ctx: _Context, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *weights = ctx.saved_tensors
        to_q, to_k, to_v = list[Tensor](), torch.zeros_like(k), torch.zeros_like(v)
        from_above = F.pad(gradients[0], (0, 0, 0, 1))
        for each, weight in zip(ctx.blocks.batched, weights, strict=True):
            _, queries, keys = each.size
            own, read = _taken(from_above, each.gradients, queries), _taken(k, each.keys, keys)
            to_weight = torch.bmm(own, _taken(v, each.keys, keys).transpose(1, 2))
            to_scores = torch._softmax_backward_data(to_weight, weight, -1, weight.dtype)
            to_q.append(torch.bmm(to_scores, read).flatten(0, 1))
            asked = _taken(q, each.queries, queries)
            # A key stands in several blocks.
            to_v.index_add_(0, each.keys, torch.bmm(weight.transpose(1, 2), own).flatten(0, 1))
            to_k.index_add_(0, each.keys, torch.bmm(to_scores.transpose(1, 2), asked).flatten(0, 1))
        scaled = torch.cat(to_q).index_select(0, ctx.blocks.rows).mul_(ctx.scaling)
        return scaled, to_k.mul_(ctx.scaling), to_v, None, None
