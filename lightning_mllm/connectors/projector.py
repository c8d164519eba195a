"""LLaVA's projectors, one visual vector at a time: f[..., in_width] -> f[..., out_width].

LLaVA (arXiv 2304.08485, eq. 1): a linear layer. LLaVA-1.5 (arXiv 2310.03744, sec. 3.2): two, an exact GELU between.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lightning_mllm.connectors.spec import FreshConnector


class Linear(nn.Module):
    """W x + b."""

    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_width, out_width)

    def forward(self, visual: Float[Tensor, "... I"]) -> Float[Tensor, "... O"]:
        return self.linear(visual)


class Mlp(nn.Module):
    """`depth` linear layers (`linear_1`, `linear_2`, ...) with a GELU between any two."""

    def __init__(self, in_width: int, out_width: int, depth: int) -> None:
        super().__init__()
        self.depth = depth
        for i in range(1, depth + 1):
            self.add_module(f"linear_{i}", nn.Linear(in_width if i == 1 else out_width, out_width))

    def forward(self, visual: Float[Tensor, "... I"]) -> Float[Tensor, "... O"]:
        visual = self.get_submodule("linear_1")(visual)
        for i in range(2, self.depth + 1):
            visual = self.get_submodule(f"linear_{i}")(F.gelu(visual))
        return visual


@dataclass(frozen=True, kw_only=True)
class LinearConnector(FreshConnector):
    """LLaVA's projection; tensors `linear.weight`, `linear.bias`."""

    def build(self) -> Linear:
        assert self.in_width > 0 and self.out_width > 0, self
        return Linear(self.in_width, self.out_width)


@dataclass(frozen=True, kw_only=True)
class MlpConnector(FreshConnector):
    """LLaVA-1.5's projection; tensors `linear_1.weight`, ...

    Raises:
        ValueError: `depth` below 2.
    """

    depth: int = 2

    def __post_init__(self) -> None:
        if self.depth < 2:
            raise ValueError(
                f"connector.depth: found {self.depth}, expected at least 2 (LinearConnector has one layer)"
            )

    def build(self) -> Mlp:
        assert self.in_width > 0 and self.out_width > 0, self
        return Mlp(self.in_width, self.out_width, self.depth)
