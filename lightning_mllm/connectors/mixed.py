"""SPHINX's projections: a linear layer and a norm for each group of a mixture (released code: `qformer_proj`,
`visual_proj`).

    group g f[N,Vg,Dg] --linear, norm--> f[N,Vg,D];  groups one after another: f[N,V,D], V the sum

Of an image in several views the parts may be shown with fewer vectors (released code: `llama_ens5p2`):

    whole   [begin][32 queries][1 + 16 x 16][end]      291
    parts   [begin][32 queries][1 +  8 x  8][end]       99 each, patches averaged by 2 x 2 before they are projected

Legend: N views, I images, V vectors and D width of a view.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Groups = tuple[Float[Tensor, "N _ _"], ...]


class Projection(nn.Module):
    """norm(W x + b)."""

    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_width, out_width)
        self.norm = nn.LayerNorm(out_width)

    def forward(self, visual: Float[Tensor, "N V I"]) -> Float[Tensor, "N V O"]:
        # Frozen towers may speak 16 bits.
        return self.norm(self.linear(visual.to(self.linear.weight.dtype)))


class MixedProjection(nn.Module):
    """A projection for each group."""

    def __init__(self, in_widths: Sequence[int], out_width: int, pool: Sequence[int]) -> None:
        super().__init__()
        self.projections = nn.ModuleList(Projection(width, out_width) for width in in_widths)
        self.pool = tuple(pool)

    def forward(self, visual: tuple[Float[Tensor, "N _ _"], ...]) -> Float[Tensor, "N V D"]:
        """The vectors of each view, group after group."""
        return torch.cat([project(each) for project, each in zip(self.projections, visual, strict=True)], dim=1)

    def by_image(self, visual: tuple[Float[Tensor, "N _ _"], ...], views: int) -> Float[Tensor, "I V D"]:
        """The vectors of each image: those of its views one after another, its parts' pooled.

        Args:
            visual: Of all views of all images; a number of views that is no multiple of `views` is a blank image.
            views: Of an image, the first of them whole.
        """
        count = len(visual[0])
        if views == 1 or count % views:
            return self(visual)
        by_view = [each.unflatten(0, (count // views, views)) for each in visual]
        whole = self(tuple(each[:, 0] for each in by_view))
        parts = (pooled(each[:, 1:].flatten(0, 1), by) for each, by in zip(by_view, self.pool, strict=True))
        return torch.cat([whole, self(tuple(parts)).unflatten(0, (-1, views - 1)).flatten(1, 2)], dim=1)


def pooled(visual: Float[Tensor, "N V D"], by: int) -> Float[Tensor, "N W D"]:
    """A class token's vector as it is, and those of a square of patches averaged over `by` x `by`."""
    if by == 1:
        return visual
    rows = math.isqrt(visual.shape[1] - 1)
    patches = F.avg_pool2d(visual[:, 1:].transpose(1, 2).unflatten(2, (rows, rows)), by)
    return torch.cat([visual[:, :1], patches.flatten(2).transpose(1, 2)], dim=1)


@dataclass(frozen=True, kw_only=True)
class MixedConnector:
    """Projections of a mixture's groups; tensors `projections.{g}.linear.weight`, `projections.{g}.norm.weight`, ...

    Raises:
        ValueError: On use, vectors that are no class token and a square to be pooled.
    """

    pool: tuple[int, ...] = ()
    """By group: the parts of an image are shown with patches averaged over so many rows and columns; none: as the
    whole (released code: (1, 2) in `llama_ens5p2`)."""
    in_widths: tuple[int, ...] = ()
    """Widths of the groups; filled in by the architecture."""
    out_width: int = 0
    """Width of the language model; filled in by the architecture."""

    def vectors(self, groups: Sequence[int], views: int) -> tuple[int, ...]:
        """How many vectors each view of an image has, of groups with so many."""
        parts = 0
        for g, (count, by) in enumerate(zip(groups, self._pool(len(groups)), strict=True)):
            rows = math.isqrt(count - 1)
            if by != 1 and (rows * rows != count - 1 or by < 1 or rows % by):
                raise ValueError(
                    f"connector.pool: found {by} for the {count} vectors of group {g}, expected a divisor of the rows"
                    " of a class token and a square, or 1"
                )
            parts += count if by == 1 else 1 + (rows // by) ** 2
        return (sum(groups), *[parts] * (views - 1))

    def build(self) -> MixedProjection:
        assert self.in_widths and self.out_width > 0, self
        return MixedProjection(self.in_widths, self.out_width, self._pool(len(self.in_widths)))

    def pretrained(self) -> None:
        return None

    def blocks(self, module: nn.Module) -> list[nn.Module]:
        return []

    def _pool(self, groups: int) -> tuple[int, ...]:
        if self.pool and len(self.pool) != groups:
            raise ValueError(f"connector.pool: found {len(self.pool)} numbers, expected {groups}, one for each group")
        return self.pool or (1,) * groups
