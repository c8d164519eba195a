"""The block of a Q-Former: BERT's, in which queries and text share self-attention and nothing else.

x f[T,D] = queries, text of all rows (qformer_rows.py)
    self-attention within each row (and over keys and values kept from another pass)
    queries: cross-attention to the visual vectors (in every k-th block), then a feed-forward of their own
    text:    the other feed-forward

BERT: arXiv 1810.04805, with the norm after each residual sum. Q-Former: BLIP-2 (arXiv 2301.12597, sec. 3.1, fig. 2).

Legend: B rows, T queries and tokens of all rows, S those of a row and its padding, K keys, D width, H heads, N images,
V visual vectors an image, E their width, W of T that come out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lightning_mllm.connectors.qformer_rows import KeysValues, Rows, Shown, Wanted, look


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
        found = F.scaled_dot_product_attention(
            self._queries(x, rows), *source, attn_mask=visible, dropout_p=self._dropped
        )
        return self._added(x, rows, found)

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
