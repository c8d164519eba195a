"""Spans say which token attends to which, and from which one each is predicted."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_mllm.spans import Spans, recurring, spans_of, spans_of_segments

APART = spans_of([(0, 2), (2, 5)])
SHARED = spans_of([(0, 4), (4, 6), (6, 7)], [(0, 0), (0, 3), (0, 0)])
"""The second span begins behind the first three tokens of the first one."""


def test_the_mask_of_spans_apart() -> None:
    assert APART.mask().int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 1, 1, 1],
    ]


def test_the_mask_of_a_shared_prefix() -> None:
    assert SHARED.mask()[4:].int().tolist() == [[1, 1, 1, 0, 1, 0, 0], [1, 1, 1, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0, 1]]


def test_the_token_before_each() -> None:
    assert APART.previous().tolist() == [-1, 0, -1, 2, 3]
    assert SHARED.previous().tolist() == [-1, 0, 1, 2, 2, 4, -1]


def test_what_varlen_attention_is_given() -> None:
    assert APART.queries.tolist() == [0, 2, 5] and APART.queries.dtype == torch.int32
    assert APART.keys is APART.queries and APART.gathered is None, "cuDNN asks for one object"
    assert APART.longest == (3, 3)
    assert SHARED.queries.tolist() == [0, 4, 6, 7] and SHARED.keys.tolist() == [0, 4, 9, 10]
    assert SHARED.keys.dtype == torch.int32 and SHARED.longest == (4, 5)
    assert SHARED.gathered is not None
    assert SHARED.gathered.tolist() == [0, 1, 2, 3, 0, 1, 2, 4, 5, 6]


@pytest.mark.parametrize("spans", [APART, SHARED], ids=["apart", "shared"])
def test_keys_and_a_causal_border_at_the_last_of_both_are_the_mask(spans: Spans) -> None:
    """As `varlen_attn` aligns them: query i of n sees key j of m where j <= i + m - n (FlashAttention 2.1)."""
    found = torch.zeros_like(spans.mask())
    queries, keys = spans.queries.tolist(), spans.keys.tolist()
    order: Tensor = torch.arange(queries[-1]) if spans.gathered is None else spans.gathered
    for k, (start, end) in enumerate(spans.own):
        seen = order[keys[k] : keys[k + 1]]
        visible = torch.ones(end - start, len(seen), dtype=torch.bool).tril(len(seen) - (end - start))
        found[start:end, seen] = visible
    assert torch.equal(found, spans.mask())


def test_spans_of_rows_with_padding() -> None:
    """Equal numbers in two rows are two segments, and padding is a span of its own."""
    spans = spans_of_segments(torch.tensor([[0, 1, 1], [1, 2, 2], [2, 0, 0]]))
    assert spans.own == ((0, 1), (1, 3), (3, 4), (4, 6), (6, 7), (7, 9))
    assert spans_of_segments(torch.tensor([[0, 0, 1], [0, 1, 1]])).own == ((0, 2), (2, 3), (3, 4), (4, 6))


def test_spans_that_leave_a_gap_are_refused() -> None:
    with pytest.raises(AssertionError):
        spans_of([(0, 2), (3, 4)])


def test_sizes_recur() -> None:
    found = [recurring(size) for size in range(1, 8193)]
    assert all(0 <= more - size < max(16, size / 32) for size, more in enumerate(found, start=1))
    assert found == sorted(found) and all(recurring(each) == each for each in found) and recurring(0) == 0
    assert len({*found}) == 64 + 3 * 32
