"""Batches made of what a language model reads of them."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_mllm.contracts import IGNORE, Batch


def batch_of(
    segments: Tensor, positions: Tensor, kinds: Tensor | None = None, labels: Tensor | None = None, num_images: int = 1
) -> Batch:
    """Rows i[B, T] of token 0, of which nothing is learned where no labels are given."""
    tokens = torch.zeros_like(segments)
    return Batch(
        ids=[f"row {i}" for i in range(len(segments))],
        tokens=tokens,
        labels=torch.full_like(tokens, IGNORE) if labels is None else labels,
        kinds=tokens.to(torch.uint8) if kinds is None else kinds,
        segments=segments,
        positions=positions,
        images=torch.zeros(1, 3, 1, 1, dtype=torch.uint8),
        num_images=num_images,
    )
