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
    positions: Float[Tensor, "O D"], shape: Sequence[int], antialias: bool = True, offset: float = 0.0, cls: int = 1
) -> Float[Tensor, "N D"] | None:
    """The same positions for another grid, as CLIP is taken to a higher resolution (arXiv 2103.00020, sec. 2.5).

    Args:
        shape: Wanted: (cls + rows x rows, width).
        antialias: As open_clip and timm do it; LAVIS and transformers do not, and weigh neighbours otherwise, too.
        offset: Added to the new number of rows where the grid is stretched; 0.1 in DINO's and DINOv2's released code.
        cls: How many positions, the first, are none of the grid's.

    Returns:
        None if either shape is no class token and a square, or the widths differ.
    """
    old, new = (math.isqrt(rows - cls) for rows in (len(positions), shape[0]))
    if (cls + old * old, cls + new * new) != (len(positions), shape[0]) or positions.shape[1:] != torch.Size(shape[1:]):
        return None
    grid = positions[cls:].float().view(1, old, old, -1).permute(0, 3, 1, 2)
    size, stretch = (None, (new + offset) / old) if offset else ((new, new), None)
    grid = F.interpolate(grid, size, stretch, mode="bicubic", antialias=antialias, align_corners=False)
    return torch.cat([positions[:cls], grid.permute(0, 2, 3, 1).flatten(0, 2).to(positions.dtype)])


def sines(rows: int, width: int) -> Float[Tensor, "V D"]:
    """Fixed positions of a grid of `rows` x `rows` vectors, row by row: half of the width for each axis, sines and
    cosines of from 1 to `rows` half turns across the grid (Perceiver's Fourier features, arXiv 2103.03206, sec. 3.2).

    Raises:
        ValueError: The width is no multiple of 4.
    """
    if width % 4:
        raise ValueError(
            f"vision.output_position_scale: found a width of {width}, expected a multiple of 4 for sines of two axes"
        )
    turns = math.pi * torch.linspace(1, rows, width // 4)
    angles = (torch.arange(rows)[:, None] + 0.5) / rows * turns
    axis = torch.cat([angles.sin(), angles.cos()], 1)
    down, right = axis[:, None].expand(-1, rows, -1), axis[None].expand(rows, -1, -1)
    return torch.cat([down, right], 2).flatten(0, 1)
