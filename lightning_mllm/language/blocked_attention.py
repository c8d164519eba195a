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
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import FunctionCtx

from lightning_mllm.spans import Spans, recurring

BLOCK = 64
"""Queries of a block."""
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
    """Blocks that are one batched product; padding repeats their first tokens."""

    queries: Int[Tensor, "n q"]
    """Indices of the tokens."""
    keys: Int[Tensor, "n k"]
    mask: Float[Tensor, "n 1 q k"]
    """0 where a query attends to a key, else -inf; a query of padding attends to the first key."""
    real: Bool[Tensor, "n q"]
    """Which queries are no padding."""


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """All blocks of a batch."""

    batched: tuple[Batched, ...]
    rows: Int[Tensor, " T"]
    """Of each token the number of its query, counted through the n x q queries of one product after the other."""


def blocks_of(spans: Spans) -> Blocks:
    """The blocks of a batch, by their sizes; on the host."""
    left: list[Block] = [
        (start, first, min(first + BLOCK, end), *prefix)
        for (start, end), prefix in zip(spans.own, spans.prefixes, strict=True)
        for first in range(start, end, BLOCK)
    ]
    left.sort(key=lambda block: (keys_of(block), queries_of(block)))
    found: list[Batched] = []
    while left:
        most = max(keys_of(left[0]) * SPARE, keys_of(left[0]) + 8)
        least = (queries_of(left[0]) - 8) / SPARE
        like = [keys_of(block) <= most and queries_of(block) >= least for block in left]
        found.append(_batched([block for block, fits in zip(left, like, strict=True) if fits]))
        left = [block for block, fits in zip(left, like, strict=True) if not fits]
    real = torch.cat([each.real.flatten() for each in found]).nonzero()[:, 0]
    tokens = torch.cat([each.queries.flatten() for each in found])[real]
    return Blocks(batched=tuple(found), rows=torch.empty_like(real).index_copy_(0, tokens, real))


def _batched(blocks: Sequence[Block]) -> Batched:
    start, first, end, before, after = torch.tensor(blocks).T[..., None]
    prefix, own = after - before, end - first
    past = prefix + first - start
    row, column = torch.arange(recurring(int(own.max()))), torch.arange(recurring(int((past + own).max())))
    real = row < own
    keys = torch.where(column < prefix, before + column, start + column - prefix)
    known = column < past + own
    attended = (column <= (row + past).unsqueeze(-1)) & known.unsqueeze(1)
    attended = torch.where(real.unsqueeze(-1), attended, column == 0)
    return Batched(
        queries=torch.where(real, first + row, first),
        keys=torch.where(known, keys, keys[:, :1]),
        mask=torch.zeros(attended.shape).masked_fill_(~attended, float("-inf")).unsqueeze(1),
        real=real,
    )


def blocked_attention(
    q: Float[Tensor, "T H D"],
    k: Float[Tensor, "T G D"],
    v: Float[Tensor, "T G D"],
    blocks: Blocks,
    scaling: float | None = None,
) -> Float[Tensor, "T H D"]:
    """Softmax in float32 at least, products in the dtype of the values."""
    if (repeated := q.shape[1] // k.shape[1]) > 1:
        k, v = k.repeat_interleave(repeated, 1), v.repeat_interleave(repeated, 1)
    found = _Blocked.apply(q, k, v, blocks, q.shape[-1] ** -0.5 if scaling is None else scaling)
    assert isinstance(found, Tensor)
    return found


def _taken(tokens: Float[Tensor, "T H D"], index: Int[Tensor, "n k"]) -> Float[Tensor, "nH k D"]:
    """The heads of a block are matrices beside one another, as a batched product reads them without a copy."""
    heads = tokens.shape[1]
    rows = index[:, None] * heads + torch.arange(heads)[:, None]
    return tokens.reshape(-1, tokens.shape[2]).index_select(0, rows.flatten()).view(-1, index.shape[1], tokens.shape[2])


def _tokens(block: Float[Tensor, "nH k D"], heads: int) -> Float[Tensor, "nk H D"]:
    return block.unflatten(0, (-1, heads)).transpose(1, 2).flatten(0, 1)


class _Context(FunctionCtx):
    blocks: Blocks
    scaling: float
    saved_tensors: tuple[Tensor, ...]


class _Blocked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, q: Tensor, k: Tensor, v: Tensor, blocks: Blocks, scaling: float) -> Tensor:
        heads, weights, found = q.shape[1], list[Tensor](), list[Tensor]()
        exact = torch.promote_types(q.dtype, torch.float32)
        for each in blocks.batched:
            scores = torch.bmm(_taken(q, each.queries), _taken(k, each.keys).transpose(1, 2)).to(exact)
            scores = torch.add(each.mask, scores.unflatten(0, (-1, heads)), alpha=scaling)
            weights.append(torch.softmax(scores, -1).to(v.dtype).flatten(0, 1))
            found.append(_tokens(torch.bmm(weights[-1], _taken(v, each.keys)), heads))
        ctx.save_for_backward(q, k, v, *weights)
        ctx.blocks, ctx.scaling = blocks, scaling
        return torch.cat(found).index_select(0, blocks.rows)

    @staticmethod
    def backward(ctx: _Context, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *weights = ctx.saved_tensors
        heads, to_q = q.shape[1], list[Tensor]()
        to_k, to_v = k.new_zeros(k.shape), v.new_zeros(v.shape)
        for each, weight in zip(ctx.blocks.batched, weights, strict=True):
            own, keys = _taken(gradients[0], each.queries), _taken(k, each.keys)
            if not each.real.all():
                own.unflatten(0, (-1, heads)).masked_fill_(~each.real[:, None, :, None], 0)
            to_weight = torch.bmm(own, _taken(v, each.keys).transpose(1, 2))
            to_scores = torch._softmax_backward_data(to_weight, weight, -1, weight.dtype)
            to_q.append(_tokens(torch.bmm(to_scores, keys), heads))
            # A key stands in several blocks.
            index = each.keys.flatten()
            to_v.index_add_(0, index, _tokens(torch.bmm(weight.transpose(1, 2), own), heads))
            to_k.index_add_(0, index, _tokens(torch.bmm(to_scores.transpose(1, 2), _taken(q, each.queries)), heads))
        scaled = torch.cat(to_q).index_select(0, ctx.blocks.rows).mul_(ctx.scaling)
        return scaled, to_k.mul_(ctx.scaling), to_v, None, None
