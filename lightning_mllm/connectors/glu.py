"""CogVLM's adapter, one visual vector at a time: f[..., in_width] -> f[..., out_width].

    x = GELU(LayerNorm(W_0 v))
    W_3 (silu(W_1 x) * W_2 x)        W_1, W_2: out_width -> inner

CogVLM (arXiv 2311.03079, sec. 2.1), which speaks of a SwiGLU of two layers; the first layer and the sizes are those of
the released code. No linear layer has a bias.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lightning_mllm.connectors.spec import FreshConnector


class Glu(nn.Module):
    """The adapter; names are the released ones."""

    def __init__(self, in_width: int, out_width: int, inner: int) -> None:
        super().__init__()
        self.linear_proj = nn.Linear(in_width, out_width, bias=False)
        self.norm1 = nn.LayerNorm(out_width)
        self.gate_proj = nn.Linear(out_width, inner, bias=False)
        self.dense_h_to_4h = nn.Linear(out_width, inner, bias=False)
        self.dense_4h_to_h = nn.Linear(inner, out_width, bias=False)

    def forward(self, visual: Float[Tensor, "... I"]) -> Float[Tensor, "... O"]:
        x = F.gelu(self.norm1(self.linear_proj(visual)))
        return self.dense_4h_to_h(F.silu(self.gate_proj(x)) * self.dense_h_to_4h(x))


@dataclass(frozen=True, kw_only=True)
class GluConnector(FreshConnector):
    """CogVLM's adapter; starts from random values.

    Raises:
        ValueError: `inner` below 1.
    """

    inner: int = 11008
    """Width between the gated layers; Vicuna-7B's feed-forward has the same."""

    def __post_init__(self) -> None:
        if self.inner < 1:
            raise ValueError(f"connector.inner: found {self.inner}, expected at least 1")

    def build(self) -> Glu:
        assert self.in_width > 0 and self.out_width > 0, self
        return Glu(self.in_width, self.out_width, self.inner)
