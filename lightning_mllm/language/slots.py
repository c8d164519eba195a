"""Visual vectors in the places that the processor kept for them."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from lightning_mllm.contracts import IGNORE, Batch, TokenKind


def fill_slots(
    embeds: Float[Tensor, "B T D"],
    kinds: UInt8[Tensor, "B T"] | Int[Tensor, "B T"],
    visual: Float[Tensor, "N V D"],
    ids: Sequence[str],
    slots: AbstractSet[TokenKind] = frozenset({TokenKind.IMAGE}),
) -> Float[Tensor, "B T D"]:
    """`embeds` with the slots overwritten by `visual`, in reading order.

    Args:
        embeds: B rows of T tokens.
        kinds: A `TokenKind` for each token.
        visual: V vectors of each of the batch's N images, or of none.
        ids: The rows' samples, for the error.
        slots: The kinds of token that are overwritten.

    Raises:
        ValueError: There are not as many slots as vectors.
    """
    filled = torch.stack([kinds == kind for kind in sorted(slots)]).any(0)
    vectors = visual.shape[0] * visual.shape[1]
    counts = filled.sum(1)
    if int(counts.sum()) != vectors:
        odd = [id for id, count in zip(ids, counts.tolist(), strict=True) if count % visual.shape[1]] or list(ids)
        raise ValueError(
            f"found {int(counts.sum())} image slots for {vectors} visual vectors ({len(visual)} images of "
            f"{visual.shape[1]}), expected as many; look at sample {', '.join(map(repr, odd[:5]))}"
        )
    return embeds.masked_scatter(filled.unsqueeze(-1), visual.to(embeds.dtype))


def texts_of_images(batch: Batch, vectors: int) -> tuple[Int[Tensor, "N L"], Bool[Tensor, "N L"]]:
    """For each image the Q-Former's text of the row that shows it, and where that is no padding.

    Args:
        vectors: Slots that an image takes.
    """
    assert batch.query_text is not None
    images = (batch.kinds == TokenKind.IMAGE).sum(1) // vectors
    if batch.num_images == 0:
        # The blank image is shown by no row.
        images = torch.zeros_like(images).index_fill(0, images.new_zeros(1), 1)
    text = batch.query_text.repeat_interleave(images, 0)
    return text, text != IGNORE
