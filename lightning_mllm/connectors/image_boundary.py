"""Learned vectors before and after the visual vectors of a view: f[N,V,D] -> f[N,V+2,D].

CogVLM's `boi` and `eoi` start as zeros, SPHINX's `start_img` and `end_img` uniform between 0 and 1 (released code of
both); all views of all images share one pair.

Legend: N views, V visual vectors of each, D width of the language model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

Start = Literal["zeros", "uniform"]


class ImageBoundary(nn.Module):
    """[begin, visual vectors, end] for every view."""

    def __init__(self, width: int, start: Start) -> None:
        super().__init__()
        draw = {"zeros": torch.zeros, "uniform": torch.rand}[start]
        self.begin = nn.Parameter(draw(1, 1, width))
        self.end = nn.Parameter(draw(1, 1, width))

    def forward(self, visual: Float[Tensor, "N V D"]) -> Float[Tensor, "N V+2 D"]:
        begin, end = (each.to(visual.dtype).expand(len(visual), -1, -1) for each in (self.begin, self.end))
        return torch.cat([begin, visual, end], dim=1)


@dataclass(frozen=True, kw_only=True)
class ImageBoundaryConnector:
    """The two vectors.

    Raises:
        ValueError: An unknown `start`.
    """

    width: int = 0
    """D; filled in by the architecture."""
    start: Start = "zeros"
    """Values before training: `zeros` (CogVLM) or `uniform` in [0, 1) (SPHINX)."""

    def __post_init__(self) -> None:
        if self.start not in get_args(Start):
            raise ValueError(
                f"image_boundary.start: found {self.start!r}, expected one of {', '.join(get_args(Start))}"
            )

    def build(self) -> ImageBoundary:
        assert self.width > 0, self
        return ImageBoundary(self.width, self.start)

    def pretrained(self) -> None:
        return None

    def blocks(self, module: nn.Module) -> list[nn.Module]:
        return []
