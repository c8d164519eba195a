"""Causal attention of spans on a CPU: blocks of queries of like sizes are one batched product.

    span      |---- 128 ----|---- 128 ----|- 40 -|        keys of a block: the prefix, and the span up to its last query
    blocks    q 128, k 128    q 128, k 256   q 40, k 296

Half of a square of scores is never computed, and no block's scores are larger than BLOCK times the keys. torch's own
kernels take one span at a time, whose slices cost much in the backward pass: 20 spans of 40 to 300 tokens, 4 heads of
64, forward and backward, take 38 CPU-milliseconds here and 83 there in bfloat16, 63 and 71 in float32.

Legend: T tokens, H heads, G heads of keys and values, D width of a head, n blocks, q queries, k keys of a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import FunctionCtx

from lightning_mllm.spans import Spans

BLOCK = 128
"""Queries of a block."""
SPARE = 1.25
"""Keys of the longest block of a batched product, by those of the shortest."""


Item = tuple[list[int], list[int], int]
"""A block of queries: theirs, its keys, and how many of these stand before the first query."""


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Blocks of queries that are one batched product."""

    queries: Int[Tensor, "n q"]
    """Indices of the tokens; padding repeats the first."""
    keys: Int[Tensor, "n k"]
    mask: Float[Tensor, "n 1 q k"]
    """0 where a query attends to a key, else -inf; a query of padding attends to the first key."""
    real: Int[Tensor, " r"] | None
    """Which of the n x q queries are no padding; None for all."""
    tokens: Int[Tensor, " r"]
    """The index of each of these."""


def blocks_of(spans: Spans) -> list[Blocks]:
    """The blocks of a batch, by their sizes; on the host."""
    items: list[Item] = []
    for (start, end), (before, after) in zip(spans.own, spans.prefixes, strict=True):
        for first in range(start, end, BLOCK):
            last = min(first + BLOCK, end)
            keys = [*range(before, after), *range(start, last)]
            items.append((list(range(first, last)), keys, len(keys) - (last - first)))
    items.sort(key=lambda item: (len(item[1]), len(item[0])))
    found: list[Blocks] = []
    while items:
        most = max(len(items[0][1]) * SPARE, len(items[0][1]) + 8)
        fits, others = list[Item](), list[Item]()
        for item in items:
            like = len(item[1]) <= most and len(item[0]) * SPARE + 8 >= len(items[0][0])
            (fits if like else others).append(item)
        items = others
        found.append(_batched(fits))
    return found


def _batched(items: Sequence[Item]) -> Blocks:
    q, k = max(len(item[0]) for item in items), max(len(item[1]) for item in items)
    queries = torch.tensor([own + own[:1] * (q - len(own)) for own, _, _ in items])
    keys = torch.tensor([own + own[:1] * (k - len(own)) for _, own, _ in items])
    own, seen = (torch.tensor([len(each) for each in some]) for some in ([i[0] for i in items], [i[1] for i in items]))
    past = torch.tensor([item[2] for item in items])
    row, column = torch.arange(q)[None, :, None], torch.arange(k)[None, None]
    real = row < own[:, None, None]
    visible = torch.where(real, (column <= row + past[:, None, None]) & (column < seen[:, None, None]), column == 0)
    chosen = real[:, :, 0].flatten().nonzero()[:, 0]
    return Blocks(
        queries=queries,
        keys=keys,
        mask=torch.zeros(visible.shape).masked_fill(~visible, float("-inf"))[:, None],
        real=None if len(chosen) == queries.numel() else chosen,
        tokens=queries.flatten()[chosen],
    )


def blocked_attention(
    q: Float[Tensor, "T H D"],
    k: Float[Tensor, "T G D"],
    v: Float[Tensor, "T G D"],
    blocks: Sequence[Blocks],
    scaling: float | None = None,
) -> Float[Tensor, "T H D"]:
    """Softmax in float32, products in the dtype of the values."""
    if (repeated := q.shape[1] // k.shape[1]) > 1:
        k, v = k.repeat_interleave(repeated, 1), v.repeat_interleave(repeated, 1)
    found = _Blocked.apply(q, k, v, blocks, q.shape[-1] ** -0.5 if scaling is None else scaling)
    assert isinstance(found, Tensor)
    return found


def _taken(tokens: Tensor, index: Tensor) -> Tensor:
    """f[n, H, q, D] of tokens f[T, H, D]."""
    return tokens.index_select(0, index.flatten()).unflatten(0, index.shape).transpose(1, 2)


def _rows(block: Tensor, blocks: Blocks) -> Tensor:
    """f[r, H, D] of f[n, H, q, D], without padding."""
    rows = block.transpose(1, 2).flatten(0, 1)
    return rows if blocks.real is None else rows.index_select(0, blocks.real)


def _add(tokens: Tensor, index: Tensor, block: Tensor) -> None:
    """Adds f[n, H, k, D] at i[n, k] of f[T, H, D]; a prefix stands in several blocks."""
    tokens.index_add_(0, index.flatten(), block.transpose(1, 2).flatten(0, 1))


class _Context(FunctionCtx):
    blocks: Sequence[Blocks]
    scaling: float
    saved_tensors: tuple[Tensor, ...]


class _Blocked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, q: Tensor, k: Tensor, v: Tensor, blocks: Sequence[Blocks], scaling: float) -> Tensor:
        found, weights = torch.empty(q.shape, dtype=q.dtype), []
        for each in blocks:
            scores = (_taken(q, each.queries) * scaling) @ _taken(k, each.keys).transpose(-1, -2)
            weight = torch.softmax(scores.float().add_(each.mask), -1).to(v.dtype)
            found.index_copy_(0, each.tokens, _rows(weight @ _taken(v, each.keys), each))
            weights.append(weight)
        ctx.save_for_backward(q, k, v, found, *weights)
        ctx.blocks, ctx.scaling = blocks, scaling
        return found

    @staticmethod
    def backward(ctx: _Context, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        q, k, v, found, *weights = ctx.saved_tensors
        to_q, to_k, to_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        # Of each query, what all of its weights share in their gradient.
        shared = (gradient.float() * found.float()).sum(-1)
        for each, weight in zip(ctx.blocks, weights, strict=True):
            own = _taken(gradient, each.queries)
            if each.real is not None:
                padding = torch.ones(each.queries.numel(), dtype=torch.bool).index_fill_(0, each.real, False)
                own = own.masked_fill(padding.view(len(own), 1, -1, 1), 0)
            queries, keys = _taken(q, each.queries) * ctx.scaling, _taken(k, each.keys)
            _add(to_v, each.keys, weight.transpose(-1, -2) @ own)
            to_scores = (own @ _taken(v, each.keys).transpose(-1, -2)).float()
            less = shared.index_select(0, each.queries.flatten()).unflatten(0, each.queries.shape)
            to_scores = to_scores.sub_(less.transpose(1, 2).unsqueeze(-1)).mul_(weight).to(q.dtype)
            if each.real is not None:
                to_scores = to_scores.masked_fill(padding.view(len(own), 1, -1, 1), 0)
            to_q.index_copy_(0, each.tokens, _rows((to_scores @ keys) * ctx.scaling, each))
            to_k.index_add_(
                0, each.keys.flatten(), (to_scores.transpose(-1, -2) @ queries).transpose(1, 2).flatten(0, 1)
            )
        return to_q, to_k, to_v, None, None
