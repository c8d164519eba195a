"""Positions by which all vectors of an image stand at one place (CogVLM, arXiv 2311.03079, and its released code).

kind       TEXT  IMAGE_BEGIN  IMAGE  IMAGE  IMAGE  IMAGE_END  TEXT  TEXT
position    0        1          2      2      2        3        4     5
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Int, UInt8
from torch import Tensor

from lightning_mllm.contracts import TokenKind


def shared_positions(kinds: UInt8[Tensor, "B T"], segments: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """Of each token in its own segment, from 0; the vectors of an image have one.

    Args:
        kinds: Two images need a token that is no IMAGE between them, or they are one.
        segments: Positions restart in each; padding, 0, has position 0.
    """
    # Before the first token stands one of a segment that does not exist.
    starts = segments != F.pad(segments[:, :-1], (1, 0), value=-1)
    image = kinds == TokenKind.IMAGE
    follows = image & F.pad(image[:, :-1], (1, 0))
    count = (~follows).long().cumsum(1)
    # The count never falls, so that the largest at a start so far is that of the token's own segment.
    base = torch.where(starts, count, 0).cummax(1).values
    return (count - base).masked_fill(segments == 0, 0)
