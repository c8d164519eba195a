"""The block of a Q-Former: BERT's, in which queries and text share self-attention and nothing else.

x f[N,S,D] = [queries, text]
    self-attention over all of x (and over keys and values kept from another pass)
    queries: cross-attention to the visual vectors (in every k-th block), then a feed-forward of their own
    text:    the other feed-forward

BERT: arXiv 1810.04805, with the norm after each residual sum. Q-Former: BLIP-2 (arXiv 2301.12597, sec. 3.1, fig. 2).

Legend: N rows, S queries and tokens of a row, K keys, D width, H heads, V visual vectors, E their width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

KeysValues = tuple[Float[Tensor, "N H _ d"], Float[Tensor, "N H _ d"]]
"""What attention looks up and what it finds there."""


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

    def forward(
        self, x: Float[Tensor, "N S D"], source: KeysValues, visible: Bool[Tensor, "#N 1 #S K"] | None
    ) -> Float[Tensor, "N S D"]:
        dropped = self.dropout.p if self.training else 0.0
        found = F.scaled_dot_product_attention(
            self._by_head(self.query(x)), *source, attn_mask=visible, dropout_p=dropped
        )
        return self.norm(x + self.dropout(self.out(found.transpose(1, 2).flatten(2))))

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

    def forward(self, x: Float[Tensor, "N S D"]) -> Float[Tensor, "N S D"]:
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
        x: Float[Tensor, "N S D"],
        queries: int,
        visual: Float[Tensor, "N V E"] | None = None,
        visible: Bool[Tensor, "#N 1 #S K"] | None = None,
        before: KeysValues | None = None,
        wanted: int | None = None,
    ) -> tuple[Float[Tensor, "N W D"], KeysValues]:
        """The block's output and the keys and values of `x` in its self-attention.

        Args:
            queries: How many rows of `x`, the first, are queries; the others are text.
            visual: What queries attend to across; needed where there are any.
            visible: Which keys each row sees; None: all. Those of `before` come first.
            before: Keys and values of an earlier pass, seen in addition.
            wanted: Only so many rows, the first, come out; None: all.
        """
        own = self.self_attention.keys_values(x)
        source = (
            own if before is None else (torch.cat([before[0], own[0]], dim=2), torch.cat([before[1], own[1]], dim=2))
        )
        x = self.self_attention(x[:, :wanted], source, visible)
        seen, text = x[:, :queries], x[:, queries:]
        outputs = []
        if queries:
            if self.cross_attention is not None:
                assert visual is not None, "queries need visual vectors"
                seen = self.cross_attention(seen, self.cross_attention.keys_values(visual), None)
            outputs.append(self.query_feed_forward(seen))
        if text.shape[1]:
            assert self.text_feed_forward is not None, "this block has no place for text"
            outputs.append(self.text_feed_forward(text))
        return torch.cat(outputs, dim=1), own
