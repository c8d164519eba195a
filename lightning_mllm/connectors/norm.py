"""A LayerNorm between an image encoder and what reads it, always trained: BLIP-2's `ln_vision` (released code)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, kw_only=True)
class LayerNormConnector:
    """Tensors `weight`, `bias`; fresh."""

    eps: float = 1e-5
    """1e-5 in BLIP-2's released code; transformers has 1e-6 there, the encoder's own."""
    in_width: int = 0
    """Width of the encoder; filled in by the architecture."""

    def build(self) -> nn.LayerNorm:
        assert self.in_width > 0, self
        return nn.LayerNorm(self.in_width, eps=self.eps)

    def pretrained(self) -> None:
        return None

    def blocks(self, module: nn.Module) -> list[nn.Module]:
        return []
