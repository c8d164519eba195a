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


def sines(rows: int, width: int) -> Float[Tensor, "V D"]:
    """Fixed positions of a grid of `rows` x `rows` vectors, row by row: half of the width for each axis, sines and
    cosines of from 1 to `rows` half turns across the grid (Perceiver's Fourier features, arXiv 2103.03206, sec. 3.2).

    Raises:
        ValueError: The width is no multiple of 4.
    """
    if width % 4:
        raise ValueError(f"vision.places: found a width of {width}, expected a multiple of 4 for sines of two axes")
    turns = math.pi * torch.linspace(1, rows, width // 4)
    angles = (torch.arange(rows)[:, None] + 0.5) / rows * turns
    axis = torch.cat([angles.sin(), angles.cos()], 1)
    down, right = axis[:, None].expand(-1, rows, -1), axis[None].expand(rows, -1, -1)
    return torch.cat([down, right], 2).flatten(0, 1)
