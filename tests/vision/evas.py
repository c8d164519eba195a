"""A small EVA tower, here and in transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Blip2VisionConfig, Blip2VisionModel

from lightning_mllm.interop.keys.eva import BLIP2_VISION_KEYS
from lightning_mllm.vision.eva import EvaTower, EvaVision

TINY: dict[str, Any] = {
    "weights": None,
    "depth": 2,
    "image_size": 12,
    "patch_size": 4,
    "width": 16,
    "heads": 2,
    "feedforward": 24,
}


def tower(**changes: Any) -> EvaVision:
    """With values that no initialisation would give."""
    built = EvaTower(**{**TINY, **changes}).build()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    return built


def theirs(ours: EvaVision | None = None, image_size: int = 12) -> Blip2VisionModel:
    """`Blip2VisionModel` of the same sizes, with the values of `ours`; without, random ones and no bias of keys."""
    config = Blip2VisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=image_size,
        patch_size=4,
    )
    model = Blip2VisionModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_()
            if name.endswith("qkv.bias"):
                parameter[16:32] = 0
    if ours is not None:
        found = model.load_state_dict(dict(BLIP2_VISION_KEYS.to_theirs(ours.state_dict().items())), strict=False)
        assert found.unexpected_keys == []
        assert found.missing_keys == ["post_layernorm.weight", "post_layernorm.bias"]
    return model


def pixels(images: Tensor, ours: EvaVision) -> Tensor:
    """What transformers' processor makes of images of the right size."""
    return (images.float() / 255 - ours.mean) / ours.std
