"""Small towers of a mixture, with values that no initialisation would give."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_mllm.vision.convnext import ConvNextTower
from lightning_mllm.vision.dino import DinoTower

TEXT: dict[str, Any] = {"context_length": 8, "vocab_size": 32, "width": 16, "heads": 2, "layers": 1}
CONVNEXT: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"timm_model_name": "test_convnext", "timm_pool": "", "timm_drop_path": 0.5, "image_size": 64},
    "text_cfg": TEXT,
}
DINO: dict[str, Any] = {
    "weights": None,
    "image_size": 12,
    "config": {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2},
}
"""With a gated layer (`giant`) of 64, without one of 96."""
GIANT, REGISTERS = "vit_giant_patch14_dinov2", "vit_small_patch14_reg4_dinov2"


def convnext(**changes: Any) -> ConvNextTower:
    return ConvNextTower(**{"weights": None, "grid": 4, "config": CONVNEXT, **changes})


def dino(**changes: Any) -> DinoTower:
    return DinoTower(**{**DINO, **changes})


def shaken(module: nn.Module) -> Any:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    return module


def images(size: int, count: int = 2) -> Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)


def pixels(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """As a library's own transform gives them."""
    return (images.float() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
