"""Position embeddings of a vision transformer at another resolution.

[CLS, old x old] x D --bicubic over the grid, CLS kept--> [CLS, new x new] x D
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def resized(
    positions: Float[Tensor, "O D"], shape: Sequence[int], antialias: bool = True
) -> Float[Tensor, "N D"] | None:
    """The same positions for another grid, as CLIP is taken to a higher resolution (arXiv 2103.00020, sec. 2.5).

    Args:
        shape: Wanted: (1 + rows x rows, width).
        antialias: As open_clip and timm do it; LAVIS and transformers do not, and weigh neighbours otherwise, too.

    Returns:
        None if either shape is no class token and a square, or the widths differ.
    """
    old, new = (math.isqrt(rows - 1) for rows in (len(positions), shape[0]))
    if (1 + old * old, 1 + new * new) != (len(positions), shape[0]) or positions.shape[1:] != torch.Size(shape[1:]):
        return None
    grid = positions[1:].float().view(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", antialias=antialias, align_corners=False)
    return torch.cat([positions[:1], grid.permute(0, 2, 3, 1).flatten(0, 2).to(positions.dtype)])
