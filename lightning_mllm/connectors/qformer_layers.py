"""The block of a Q-Former: BERT's, in which queries and text share self-attention and nothing else.

    queries f[B,Q,D], text f[B,L,D]  --flat-->  x f[T,D]  --padded-->  f[B,S,D], which attention needs; S = Q + L

x f[T,D] = queries, then text, of all rows
    self-attention within each row (and over keys and values kept from another pass)
    queries: cross-attention to the visual vectors (in every k-th block), then a feed-forward of their own
    text:    the other feed-forward

All but attention treats each query and each token alone and needs no padding: on the CPU the text of x is without it.
Elsewhere, to ask where padding is would wait for the device, and x keeps it.

BERT: arXiv 1810.04805, with the norm after each residual sum. Q-Former: BLIP-2 (arXiv 2301.12597, sec. 3.1, fig. 2).

Legend: B rows, Q queries and L tokens of a row, T queries and tokens of all rows, K keys, D width, H heads of width d,
N images, V visual vectors an image, E their width, R of the rows, W of T that come out.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_mllm.spans import recurring

KeysValues = tuple[Float[Tensor, "_ H _ d"], Float[Tensor, "_ H _ d"]]
"""What attention looks up and what it finds there."""


@dataclass(frozen=True)
class Rows:
    """What x f[T, D] holds: the queries of all rows, then the tokens of all rows."""

    count: int
    """B."""
    queries: int
    """Q; 0 for text alone."""
    length: int = 0
    """L; 0 for queries alone."""
    tokens: Int[Tensor, " t"] | None = None
    """Which of the B * L tokens x has; None: all."""
    places: Int[Tensor, " T"] | None = None
    """Where each of x stands in the padded rows, one row behind the other; None: x has all."""
    at: Int[Tensor, "B S"] | None = None
    """The inverse of `places`; any of x at padding."""

    @classmethod
    def of(cls, real: Bool[Tensor, "B L"], queries: int) -> Rows:
        """Of text that is padding where `real` is False."""
        (count, length), tokens = real.shape, real_tokens(real)
        if tokens is None:
            return cls(count, queries, length)
        first = torch.arange(count).unsqueeze(1) * (queries + length)
        text = first + queries + torch.arange(length)
        places = torch.cat([(first + torch.arange(queries)).flatten(), text.flatten()[tokens]])
        at = torch.zeros(count * (queries + length), dtype=torch.long)
        at[places] = torch.arange(len(places))
        return cls(count, queries, length, tokens, places, at.view(count, -1))

    def padded(self, x: Float[Tensor, "T D"]) -> Float[Tensor, "B S D"]:
        """Row by row; what stands at padding means nothing."""
        if self.at is not None:
            return F.embedding(self.at, x)
        queries, text = x.split([self.count * self.queries, self.count * self.length])
        parts = [each.unflatten(0, (self.count, -1)) for each in (queries, text) if len(each)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def flat(self, x: Float[Tensor, "B S D"]) -> Float[Tensor, "T D"]:
        """Back from `padded`."""
        if self.places is not None:
            return F.embedding(self.places, x.flatten(0, 1))
        parts = [each.flatten(0, 1) for each in x.split([self.queries, self.length], dim=1) if each.shape[1]]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def only_queries(self) -> Wanted:
        return Wanted(slice(self.count * self.queries), Rows(self.count, self.queries))

    def first_tokens(self) -> Wanted:
        """Of text alone, whose first token no row lacks."""
        assert not self.queries
        one = Rows(self.count, 0, 1)
        if self.tokens is None:
            return Wanted(slice(None, None, self.length), one)
        first = (self.tokens % self.length == 0).nonzero()[:, 0]
        assert len(first) == self.count, f"{len(first)} of {self.count} texts begin at their first place, expected all"
        return Wanted(first, one)


class Wanted(NamedTuple):
    """The part of x that comes out of a block, equally long in all rows."""

    part: slice | Int[Tensor, " t"]
    rows: Rows


class Shown(NamedTuple):
    """Images, each once, and the rows that look at them."""

    images: Float[Tensor, "N V E"] | KeysValues
    """Visual vectors, or what a block has made of them."""
    rows: Int[Tensor, " R"] | int = 1
    """The image of each row; or how many times N the rows are, of which row r looks at image r % N."""


def real_tokens(real: Bool[Tensor, "B L"]) -> Int[Tensor, " t"] | None:
    """Which of all tokens are no padding, and some that are, so that sizes recur; None if that is all of them, or if
    asking would wait for a device.

    A subclass of Tensor has no values to ask for, where memory is told (`FakeTensor`).
    """
    if type(real) is not Tensor or real.device.type != "cpu":
        return None
    known, spare = real.flatten().nonzero()[:, 0], ~real
    spare[:, 0] = False  # `first_tokens` counts on real ones
    spare = spare.flatten().nonzero()[:, 0]
    missing = recurring(len(known)) - len(known)
    every = len(known) + min(missing, len(spare)) == real.numel()
    return None if every else torch.cat([known, spare[:missing]]).sort().values


def attend(
    query: Float[Tensor, "B H Q d"],
    source: KeysValues,
    visible: Bool[Tensor, "#B 1 #Q K"] | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "B H Q d"]:
    """Softmax attention. Where a CPU learns in bfloat16, as products and a softmax: of few keys, the backward pass of
    torch's fused kernel takes two to five times as long."""
    plain = query.device.type == "cpu" and query.dtype == torch.bfloat16 and torch.is_grad_enabled()
    with sdpa_kernel(SDPBackend.MATH) if plain else nullcontext():
        return F.scaled_dot_product_attention(query, *source, attn_mask=visible, dropout_p=dropout)


def look(
    query: Float[Tensor, "B H Q d"], shown: Sequence[tuple[KeysValues, Int[Tensor, " R"] | int]], dropout: float
) -> Float[Tensor, "B H Q d"]:
    """Attention of rows, in the order of `shown`, to images whose keys and values are there once, not once a row."""
    found, start = [], 0
    for (key, value), rows in shown:
        count = rows * len(key) if isinstance(rows, int) else len(rows)
        own = query[start : start + count]
        start += count
        if isinstance(rows, int):
            # The queries of all rows of an image side by side: each of them looks for itself.
            own = own.unflatten(0, (rows, -1)).permute(1, 2, 0, 3, 4).flatten(2, 3) if rows > 1 else own
            each = attend(own, (key, value), dropout=dropout)
            each = each.unflatten(2, (rows, -1)).permute(2, 0, 1, 3, 4).flatten(0, 1) if rows > 1 else each
        else:
            each = attend(own, (key.index_select(0, rows), value.index_select(0, rows)), dropout=dropout)
        found.append(each)
    assert start == len(query), f"images of {start} rows, expected those of {len(query)}"
    return found[0] if len(found) == 1 else torch.cat(found)


class Attention(nn.Module):
    """norm(x + W_o softmax(q k / sqrt(d)) v); `source_width` is that of what keys and values are made of."""

    def __init__(self, width: int, source_width: int, heads: int, dropout: float, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(source_width, width)
        self.value = nn.Linear(source_width, width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=eps)
        self.dropout = nn.Dropout(dropout)

    def keys_values(self, source: Float[Tensor, "N K E"]) -> KeysValues:
        return self._by_head(self.key(source)), self._by_head(self.value(source))

    def keys_values_of(self, x: Float[Tensor, "T E"], rows: Rows) -> KeysValues:
        """Of each row."""
        return self._by_head(rows.padded(self.key(x))), self._by_head(rows.padded(self.value(x)))

    def forward(
        self, x: Float[Tensor, "T D"], rows: Rows, source: KeysValues, visible: Bool[Tensor, "#B 1 #S K"] | None
    ) -> Float[Tensor, "T D"]:
        return self._added(x, rows, attend(self._queries(x, rows), source, visible, self._dropped))

    def look(
        self, x: Float[Tensor, "T D"], rows: Rows, shown: Sequence[Shown]
    ) -> tuple[Float[Tensor, "T D"], KeysValues]:
        """The rows' attention to the images that they are shown; and the keys and values of the first of `shown`."""
        sources = [(self.keys_values(i) if isinstance(i, Tensor) else i, of_rows) for i, of_rows in shown]
        found = look(self._queries(x, rows), sources, self._dropped)
        return self._added(x, rows, found), sources[0][0]

    @property
    def _dropped(self) -> float:
        return self.dropout.p if self.training else 0.0

    def _queries(self, x: Float[Tensor, "T D"], rows: Rows) -> Float[Tensor, "B H S d"]:
        return self._by_head(rows.padded(self.query(x)))

    def _added(self, x: Float[Tensor, "T D"], rows: Rows, found: Float[Tensor, "B H S d"]) -> Float[Tensor, "T D"]:
        return self.norm(x + self.dropout(self.out(rows.flat(found.transpose(1, 2).flatten(2)))))

    def _by_head(self, x: Float[Tensor, "N K D"]) -> Float[Tensor, "N H K d"]:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class FeedForward(nn.Module):
    """norm(x + W_2 gelu(W_1 x)), with the exact GELU."""

    def __init__(self, width: int, inner: int, dropout: float, eps: float) -> None:
        super().__init__()
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)
        self.norm = nn.LayerNorm(width, eps=eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "T D"]) -> Float[Tensor, "T D"]:
        return self.norm(x + self.dropout(self.down(F.gelu(self.up(x)))))


class QFormerLayer(nn.Module):
    """One block; all passes of a Q-Former go through its one `forward`, so that it can be a unit of FSDP2.

    Args:
        width: D.
        visual_width: E; 0 for a block without cross-attention.
        text: Whether text comes out of the block, and so has a feed-forward.
    """

    def __init__(
        self, width: int, heads: int, inner: int, dropout: float, eps: float, visual_width: int, text: bool
    ) -> None:
        super().__init__()
        self.self_attention = Attention(width, width, heads, dropout, eps)
        self.cross_attention = Attention(width, visual_width, heads, dropout, eps) if visual_width else None
        self.query_feed_forward = FeedForward(width, inner, dropout, eps)
        self.text_feed_forward = FeedForward(width, inner, dropout, eps) if text else None

    def forward(
        self,
        x: Float[Tensor, "T D"],
        rows: Rows,
        shown: Sequence[Shown] = (),
        visible: Bool[Tensor, "#B 1 #S K"] | None = None,
        before: KeysValues | None = None,
        wanted: Wanted | None = None,
    ) -> tuple[Float[Tensor, "W D"], KeysValues, KeysValues | None]:
        """The block's output; the keys and values of `x` in its self-attention; those of the first of `shown`.

        Tensors stand in tuples and lists alone, in which FSDP2 finds those that have a gradient.

        Args:
            rows: What `x` holds.
            shown: What queries attend to across; needed where there are any and the block looks.
            visible: Which keys each row sees; None: all. Those of `before` come first.
            before: Keys and values of an earlier pass, seen in addition.
            wanted: What comes out; None: all.
        """
        own = self.self_attention.keys_values_of(x, rows)
        source = (
            own if before is None else (torch.cat([before[0], own[0]], dim=2), torch.cat([before[1], own[1]], dim=2))
        )
        x, rows = (x, rows) if wanted is None else (x[wanted.part], wanted.rows)
        x = self.self_attention(x, rows, source, visible)
        first = rows.count * rows.queries
        seen, text = x[:first], x[first:]
        outputs, across = [], None
        if rows.queries:
            if self.cross_attention is not None:
                assert shown, "queries need visual vectors"
                seen, across = self.cross_attention.look(seen, Rows(rows.count, rows.queries), shown)
            outputs.append(self.query_feed_forward(seen))
        if rows.length:
            assert self.text_feed_forward is not None, "this block has no place for text"
            outputs.append(self.text_feed_forward(text))
        return (outputs[0] if len(outputs) == 1 else torch.cat(outputs)), own, across
