"""Position embeddings of a vision transformer at another resolution.

[CLS, old x old] x D --bicubic over the grid, CLS kept--> [CLS, new x new] x D
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

NAMES = ("visual.positional_embedding", "vision.positional_embedding")
"""How they are called in a whole open_clip model and in a tower."""


def is_grid(name: str, old: Tensor, new: Tensor) -> bool:
    """Whether a tensor of a net holds the positions of an image tower: a class token and a square, before and after."""
    square = all(each.ndim == 2 and math.isqrt(len(each) - 1) ** 2 == len(each) - 1 for each in (old, new))
    return name.endswith(NAMES) and square and old.shape[1] == new.shape[1]


def resize_positions(positions: Float[Tensor, "O D"], rows: int) -> Float[Tensor, "N D"]:
    """The same positions for a grid of `rows - 1` patches, as CLIP is taken to a higher resolution (arXiv 2103.00020,
    sec. 2.5: ViT-L/14@336px)."""
    old, new = math.isqrt(len(positions) - 1), math.isqrt(rows - 1)
    grid = positions[1:].float().view(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", antialias=True, align_corners=False)
    resized = grid.permute(0, 2, 3, 1).flatten(0, 2).to(positions.dtype)
    return torch.cat([positions[:1], resized])
