"""The sizes of an EVA tower as transformers states them, in `Blip2VisionConfig` and in InstructBLIP's."""

from __future__ import annotations

from typing import Any

from torch import nn

from lightning_mllm.vision.eva import EPS, EvaBlock, EvaTower, EvaVision
from lightning_mllm.vision.source import Statistic

FIXED: dict[str, Any] = {"hidden_act": "gelu", "layer_norm_eps": EPS, "qkv_bias": True}
"""What every EVA tower here has."""


def eva_settings(tower: nn.Module, image_size: int) -> dict[str, Any]:
    """The fields of a vision configuration whose tower is `tower`.

    Raises:
        ValueError: Another kind of tower, for which transformers' BLIP-2 has no place.
    """
    if not isinstance(tower, EvaVision):
        raise ValueError(
            f"vision: found a {type(tower).__name__}, expected an EVA tower, all that transformers' BLIP-2 can hold"
        )
    block = tower.blocks[0]
    assert isinstance(block, EvaBlock)
    return {
        "hidden_size": tower.cls_token.shape[-1],
        "intermediate_size": block.mlp.fc1.out_features,
        "num_hidden_layers": len(tower.blocks),
        "num_attention_heads": block.attn.heads,
        "image_size": image_size,
        "patch_size": tower.patch_embed.kernel_size[0],
        **FIXED,
    }


def eva_tower(config: Any, mean: Statistic, std: Statistic) -> EvaTower:
    """The spec, without weights, of the tower of a vision configuration; the inverse of `eva_settings`.

    Raises:
        ValueError: A tower that is none of EVA's.
    """
    for key, expected in FIXED.items():
        if (found := getattr(config, key)) != expected:
            raise ValueError(f"vision_config.{key}: found {found!r}, expected {expected!r}")
    return EvaTower(
        weights=None,
        depth=config.num_hidden_layers,
        image_size=config.image_size,
        patch_size=config.patch_size,
        width=config.hidden_size,
        heads=config.num_attention_heads,
        feedforward=config.intermediate_size,
        mean=mean,
        std=std,
    )
