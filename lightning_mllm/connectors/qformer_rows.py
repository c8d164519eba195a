"""How the rows that a Q-Former reads lie in memory, and which images they look at.

    queries f[B,Q,D], text f[B,L,D]  --flat-->  x f[T,D]  --padded-->  f[B,S,D], which attention needs; S = Q + L

All but attention treats each query and each token alone and needs no padding: on the CPU the text of x is without it.
Elsewhere, to ask where padding is would wait for the device, and x keeps it.

Legend: B rows, Q queries and L tokens of a row, T queries and tokens of all rows, D width, N images, V vectors of width
E an image, H heads of width d, R of the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

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
    """Which of all tokens are no padding; None if all are, or if asking would wait for a device."""
    if real.device.type != "cpu" or bool(real.all()):
        return None
    return real.flatten().nonzero()[:, 0]


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
            each = F.scaled_dot_product_attention(own, key, value, dropout_p=dropout)
            each = each.unflatten(2, (rows, -1)).permute(2, 0, 1, 3, 4).flatten(0, 1) if rows > 1 else each
        else:
            key, value = key.index_select(0, rows), value.index_select(0, rows)
            each = F.scaled_dot_product_attention(own, key, value, dropout_p=dropout)
        found.append(each)
    assert start == len(query), f"images of {start} rows, expected those of {len(query)}"
    return found[0] if len(found) == 1 else torch.cat(found)
