"""Learned vectors before and after the visual vectors of a view: [begin, V vectors, end].

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

from lightning_mllm.contracts import TokenKind

Start = Literal["zeros", "uniform"]


class ImageBoundary(nn.Module):
    """What fills the slots of views: begin and end of each, and visual vectors between them."""

    def __init__(self, width: int, start: Start) -> None:
        super().__init__()
        draw = {"zeros": torch.zeros, "uniform": torch.rand}[start]
        self.begin = nn.Parameter(draw(1, 1, width))
        self.end = nn.Parameter(draw(1, 1, width))

    def forward(self, visual: Float[Tensor, "n D"], views: int) -> dict[TokenKind, Float[Tensor, "_ D"]]:
        """Kind of slot -> its vectors, n being those of all N views."""
        begin, end = (each[0].to(visual.dtype).expand(views, -1) for each in (self.begin, self.end))
        return {TokenKind.IMAGE_BEGIN: begin, TokenKind.IMAGE: visual, TokenKind.IMAGE_END: end}


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
