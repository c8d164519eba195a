"""Attention masks of segments, as numbers that are added to the scores.

A boolean mask would be misread by transformers' eager attention, without a word.

Legend: B rows, T tokens a row.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_mllm.spans import Spans


def block_mask(
    segments: Int[Tensor, "B T"], dtype: torch.dtype, spans: Spans | None = None
) -> Float[Tensor, "B 1 T T"]:
    """Additive: 0 where a token (row) attends to another (column), else the smallest number of `dtype`.

    Args:
        segments: As in `Batch`; a token attends within its own.
        dtype: Of the scores.
        spans: Where they are known, what they say instead.
    """
    if spans is not None:
        blocks = spans.mask().unflatten(0, segments.shape).unflatten(2, segments.shape).diagonal(dim1=0, dim2=2)
        return _additive(blocks.permute(2, 0, 1).to(segments.device), dtype).unsqueeze(1)
    length = segments.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    same = segments.unsqueeze(2) == segments.unsqueeze(1)
    # Padding sees itself: a row of nothing but forbidden columns gives NaN.
    return _additive(same & causal, dtype).unsqueeze(1)


def padding_mask(segments: Int[Tensor, "B T"], dtype: torch.dtype) -> Float[Tensor, "B 1 1 T"]:
    """Additive, as `block_mask`, for what attends to whole rows: to all but padding."""
    return _additive(segments > 0, dtype)[:, None, None]


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill(~visible, torch.finfo(dtype).min)
