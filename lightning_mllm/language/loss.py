"""The loss of next-token prediction; the one place where labels are shifted.

Legend: B rows, T tokens a row, D width, S supervised tokens, W words of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightning_mllm.contracts import IGNORE


def next_token_loss(
    hidden: Float[Tensor, "B T D"],
    head: Callable[[Tensor], Tensor],
    labels: Int[Tensor, "B T"],
    segments: Int[Tensor, "B T"],
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """Mean cross-entropy in float32, and over how many tokens; a mean over none is 0 and has a gradient of 0.

    Only supervised positions pass through the head: logits of the others would cost more than the whole decoder.

    Args:
        hidden: What the head reads at each token.
        head: f[S, D] -> logits f[S, W].
        labels: Aligned with the tokens; IGNORE where not learned. A segment's first token is never predicted.
        segments: As in `Batch`.
    """
    chosen = predicted(labels, segments)
    logits = head(hidden[:, :-1][chosen]).float()
    count = chosen.sum()
    return F.cross_entropy(logits, labels[:, 1:][chosen], reduction="sum") / count.clamp(min=1), count


def predicted(labels: Int[Tensor, "B T"], segments: Int[Tensor, "B T"]) -> Bool[Tensor, "B t"]:
    """Whether token t + 1 is learned from token t: it has a label, and both are of one segment."""
    return (labels[:, 1:] != IGNORE) & (segments[:, 1:] == segments[:, :-1])
