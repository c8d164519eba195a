"""Blocks of queries attend as whole spans do under a mask."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from lightning_mllm.language.blocked_attention import BLOCK, blocked_attention, blocks_of
from lightning_mllm.spans import Spans, spans_of

SPANS = {
    "one": spans_of([(0, 7)]),
    "several lengths": spans_of([(0, 3), (3, 20), (20, 21), (21, 40)]),
    "longer than a block": spans_of([(0, 2 * BLOCK + 30), (2 * BLOCK + 30, 2 * BLOCK + 50)]),
    "a shared prefix": spans_of([(0, 30), (30, 40), (40, 41), (41, 60)], [(0, 0), (0, 12), (0, 12), (0, 0)]),
}


@pytest.mark.parametrize("groups", [4, 2])
@pytest.mark.parametrize("name", SPANS)
def test_blocks_attend_as_a_mask_says(name: str, groups: int) -> None:
    spans, generator = SPANS[name], torch.Generator().manual_seed(0)
    length = spans.own[-1][1]
    q, k, v = (
        torch.randn(length, heads, 8, generator=generator, dtype=torch.float64, requires_grad=True)
        for heads in (4, groups, groups)
    )
    found = blocked_attention(q, k, v, blocks_of(spans, 4), scaling=0.3)
    heads = (each.transpose(0, 1)[None] for each in (q, k, v))
    expected = F.scaled_dot_product_attention(*heads, attn_mask=spans.mask(), scale=0.3, enable_gqa=True)[0]
    assert_close(found, expected.transpose(0, 1), atol=1e-12, rtol=0)
    weight = torch.randn(found.shape, generator=generator, dtype=torch.float64)
    ours, theirs = (torch.autograd.grad((each * weight).sum(), (q, k, v)) for each in (found, expected.transpose(0, 1)))
    for own, other in zip(ours, theirs, strict=True):
        assert_close(own, other, atol=1e-12, rtol=0)


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("spans", SPANS.values(), ids=list(SPANS))
def test_every_query_stands_in_one_block(spans: Spans, heads: int) -> None:
    blocks, vectors = blocks_of(spans, heads), spans.own[-1][1] * heads
    queries = torch.cat([each.queries for each in blocks.batched])
    assert queries[blocks.rows].tolist() == list(range(vectors))
    real = torch.cat([each.gradients for each in blocks.batched]) < vectors
    assert real.nonzero()[:, 0].tolist() == sorted(blocks.rows.tolist())


def test_sizes_of_blocks_recur() -> None:
    """A CPU's kernel for products of bfloat16 is made anew for each shape."""
    generator = torch.Generator().manual_seed(0)
    sizes = set[tuple[int, ...]]()
    for _ in range(50):
        ends = torch.randint(1, 300, (8,), generator=generator).cumsum(0).tolist()
        sizes |= {each.size[1:] for each in blocks_of(spans_of(list(pairwise([0, *ends]))), 2).batched}
    queries, keys = ({size[number] for size in sizes} for number in (0, 1))
    assert queries <= set(range(8, BLOCK + 1, 8)) and keys <= set(range(16, 305, 16))
