"""Visual vectors in the slots that the processor kept for them.

Legend: B rows, T tokens, D width, n slots of one kind.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_mllm.contracts import Batch, TokenKind

VisualVectors = Mapping[TokenKind, Float[Tensor, "_ D"]]
"""Kind of slot -> f[n, D] for its n slots, in reading order, whichever image they come from."""

BOUNDARY = (TokenKind.IMAGE_BEGIN, TokenKind.IMAGE_END)
"""Kinds that are words where a net has no vectors for them."""


def fill_slots(
    embeds: Float[Tensor, "B T D"],
    batch: Batch,
    vectors: Mapping[TokenKind, Float[Tensor, "_ D"]] | Mapping[int, Float[Tensor, "_ D"]],
) -> Float[Tensor, "B T D"]:
    """`embeds` with the slots of each kind overwritten by its vectors, in reading order.

    Of the blank image of a text-only batch nothing is placed, and yet it takes part: the empty slice gives what it went
    through a gradient of zero, so that no rank is without one.

    Raises:
        ValueError: There are not as many slots of a kind as vectors, or slots of a kind that is not given.
    """
    if odd := [kind for kind, at in batch.layout.slots.items() if len(at) and kind not in {*vectors, *BOUNDARY}]:
        raise ValueError(
            f"found slots of the kinds {odd}, expected {sorted(map(int, vectors))}, which the net fills;"
            f" look at samples {', '.join(map(repr, batch.ids[:5]))}"
        )
    given = {kind: each if batch.num_images else each[:0] for kind, each in vectors.items()}
    for kind, each in given.items():
        if (slots := len(batch.layout.slots[kind])) != len(each):
            raise ValueError(
                f"found {slots} {getattr(kind, 'name', kind)} slots for {len(each)} vectors of {batch.num_images}"
                f" images, expected as many; look at samples {', '.join(map(repr, batch.ids[:5]))}"
            )
    index = torch.cat([batch.layout.slots[kind] for kind in given])
    filled = torch.cat(list(given.values())).to(embeds.dtype)
    return embeds.flatten(0, 1).index_copy(0, index, filled).unflatten(0, embeds.shape[:2])
