"""Where segments stand in rows that hold several, and which tokens before it each attends to: what attention needs.

    row         <s> image  what is it ? a dog  | where is it ? in a park | <s> image' ...
    span        0 .......................... 9   9 .............. 16       16 ...
    prefix      -                                0 ... 2                   -          the image, shared by two questions

A token attends to itself and those before it in its own span, and to all of its span's prefix. Indices count the tokens
of all rows, one row behind the other. A mask of all pairs of tokens is never made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise

import torch
from jaxtyping import Bool, Int
from torch import Tensor

Range = tuple[int, int]
"""First index and that behind the last one."""


def recurring(size: int, least: int = 16) -> int:
    """`size` rounded up, so that sizes recur from batch to batch: to `least`, from 1,024 on to between 1/64 and 1/32 of
    it where `least` is 16.

    For each shape a CPU makes kernels of bfloat16 anew, and a compiler a graph.
    """
    step = least << max(0, size.bit_length() - 10)
    return -(-size // step) * step


@dataclass(frozen=True, kw_only=True)
class Spans:
    """Spans cover all tokens in order; a prefix is a part of an earlier span that has none itself."""

    own: tuple[Range, ...]
    prefixes: tuple[Range, ...]
    """Of each span; (0, 0) for none."""
    queries: Int[Tensor, " E"]
    """Cumulative lengths of the spans, i32: varlen attention's `cu_seq_q`."""
    keys: Int[Tensor, " E"]
    """The same with their prefixes: `cu_seq_k`; the same object as `queries` where no span has a prefix."""
    gathered: Int[Tensor, " K"] | None
    """Index of every key in the order of `keys`; None where they are the tokens."""

    @property
    def longest(self) -> tuple[int, int]:
        """Tokens of the longest span, and with prefixes."""
        pairs = zip(self.own, self.prefixes, strict=True)
        return max(e - s for s, e in self.own), max(e - s + after - before for (s, e), (before, after) in pairs)

    def previous(self) -> Int[Tensor, " T"]:
        """Of each token the index of the one before it, whose hidden state predicts it; -1 where none is."""
        found = torch.arange(-1, self.own[-1][1] - 1)
        for (start, _), (before, after) in zip(self.own, self.prefixes, strict=True):
            found[start] = after - 1 if after > before else -1
        return found

    def mask(self) -> Bool[Tensor, "T T"]:
        """Which token (row) attends to which (column): for models without another way, and for tests."""
        length = self.own[-1][1]
        found = torch.zeros(length, length, dtype=torch.bool)
        for (start, end), (before, after) in zip(self.own, self.prefixes, strict=True):
            found[start:end, before:after] = True
            found[start:end, start:end] = torch.ones(end - start, end - start, dtype=torch.bool).tril()
        return found


def spans_of(own: Sequence[Range], prefixes: Sequence[Range] | None = None) -> Spans:
    """The spans, with what is derived from them, on the host."""
    prefixes = prefixes or [(0, 0)] * len(own)
    assert own[0][0] == 0 and all(a[1] == b[0] for a, b in pairwise(own)), own
    queries = torch.tensor([0, *(end for _, end in own)], dtype=torch.int32)
    if not any(after > before for before, after in prefixes):
        return Spans(own=tuple(own), prefixes=tuple(prefixes), queries=queries, keys=queries, gathered=None)
    pairs = list(zip(own, prefixes, strict=True))
    lengths = [end - start + after - before for (start, end), (before, after) in pairs]
    ranges = chain.from_iterable((range(*prefix), range(*span)) for span, prefix in pairs)
    gathered = torch.tensor(list(chain.from_iterable(ranges)))
    keys = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    return Spans(own=tuple(own), prefixes=tuple(prefixes), queries=queries, keys=keys, gathered=gathered)


def spans_of_segments(segments: Int[Tensor, "B T"]) -> Spans:
    """Of rows as `Batch` has them; padding is a span of its own, whose outcome means nothing."""
    apart = segments.cpu().long() + (segments.max().item() + 1) * torch.arange(len(segments))[:, None]
    ends = apart.flatten().unique_consecutive(return_counts=True)[1].cumsum(0).tolist()
    return spans_of(list(pairwise([0, *ends])))
