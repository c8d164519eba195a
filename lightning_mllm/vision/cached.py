"""What stands in a net in place of a frozen tower whose outputs are known (`mllm cache`): no parameters, no memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn


class CachedVision(nn.Module):
    """Gives the features that come in the shape of the tower's output.

    Args:
        groups: Vectors V and width D of each group.
        mixed: Whether the tower gives a tuple of groups, however many.
        dtype: Of the output; the tower's own.
    """

    def __init__(self, groups: Sequence[tuple[int, int]], mixed: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.groups, self.mixed, self.dtype = list(groups), mixed, dtype

    def forward(self, images: Float[Tensor, "N F"]) -> Float[Tensor, "N V D"] | tuple[Float[Tensor, "N _ _"], ...]:
        """f[N, V, D], or that of each group."""
        parts = images.to(self.dtype).split([vectors * width for vectors, width in self.groups], dim=1)
        found = tuple(part.unflatten(1, group) for part, group in zip(parts, self.groups, strict=True))
        return found if self.mixed else found[0]


@dataclass(frozen=True, kw_only=True)
class CachedTower:
    """The spec of a `CachedVision`; its fields are as there."""

    groups: tuple[tuple[int, int], ...]
    mixed: bool
    dtype: torch.dtype

    def build(self) -> CachedVision:
        return CachedVision(self.groups, self.mixed, self.dtype)

    def pretrained(self) -> Iterable[tuple[str, Tensor]]:
        return ()

    def blocks(self, module: nn.Module) -> list[nn.Module]:
        return []
