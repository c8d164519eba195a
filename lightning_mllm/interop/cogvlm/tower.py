"""The tower of a CogVLM as its folders state it: EVA2 as in the public checkpoints, or a CLIP in the same names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import CLIPVisionConfig

from lightning_mllm.interop.cogvlm.keys import INPUT
from lightning_mllm.interop.hf_components import clip_config, open_clip_config
from lightning_mllm.vision.encoder import VisionTower
from lightning_mllm.vision.eva import EPS, Mlp
from lightning_mllm.vision.eva2 import Eva2Attention, Eva2Tower, Eva2Vision
from lightning_mllm.vision.source import Statistic
from lightning_mllm.vision.tower import OpenClipTower

BRANCH = "branch"
"""`vision_config.norms` of a tower whose norms stand behind its branches, as in EVA2."""


def cogvlm_vision(tower: nn.Module, image_size: int) -> dict[str, Any]:
    """The fields of a `vision_config` whose tower is `tower`.

    Raises:
        ValueError: A tower that the layout cannot hold.
    """
    if isinstance(tower, VisionTower):
        if tower.keep_cls:
            raise ValueError("vision.cls: found keep, expected drop, all that CogVLM's layout knows")
        clip = clip_config(tower, image_size)
        sizes = {
            "hidden_size": clip.hidden_size,
            "num_heads": clip.num_attention_heads,
            "num_hidden_layers": clip.num_hidden_layers,
            "intermediate_size": clip.intermediate_size,
            "patch_size": clip.patch_size,
            "layer_norm_eps": clip.layer_norm_eps,
            "hidden_act": clip.hidden_act,
            "norms": INPUT,
            "output_position_scale": tower.output_position_scale,
        }
    elif isinstance(tower, Eva2Vision):
        block: Any = tower.blocks[0]
        attention, mlp = block.attn, block.mlp
        assert isinstance(attention, Eva2Attention) and isinstance(mlp, Mlp)
        sizes = {
            "hidden_size": tower.cls_token.shape[-1],
            "num_heads": attention.heads,
            "num_hidden_layers": len(tower.blocks),
            "intermediate_size": mlp.fc1.out_features,
            "patch_size": tower.patch_embed.kernel_size[0],
            "layer_norm_eps": EPS,
            "hidden_act": "gelu",
            "norms": BRANCH,
        }
    else:
        raise ValueError(
            f"vision: found a {type(tower).__name__}, expected EVA2 or a CLIP, all that CogVLM's layout knows"
        )
    return {**sizes, "image_size": image_size, "num_positions": (image_size // sizes["patch_size"]) ** 2 + 1}


def cogvlm_tower(sizes: Mapping[str, Any], mean: Statistic, std: Statistic) -> Eva2Tower | OpenClipTower:
    """The spec, without weights, of the tower of a `vision_config`; the inverse of `cogvlm_vision`.

    Raises:
        ValueError: A tower of neither kind.
    """
    positions = (sizes["image_size"] // sizes["patch_size"]) ** 2 + 1
    if (found := sizes["num_positions"]) != positions:
        raise ValueError(f"vision_config.num_positions: found {found}, expected {positions} for the size of the image")
    if sizes["norms"] == INPUT:
        fields = {
            "image_size": sizes["image_size"],
            "patch_size": sizes["patch_size"],
            "hidden_size": sizes["hidden_size"],
            "intermediate_size": sizes["intermediate_size"],
            "num_hidden_layers": sizes["num_hidden_layers"],
            "num_attention_heads": sizes["num_heads"],
            "hidden_act": sizes["hidden_act"],
        }
        config = open_clip_config(CLIPVisionConfig(**fields), mean, std)
        return OpenClipTower(
            weights=None, layer=-1, cls="drop", output_position_scale=sizes["output_position_scale"], config=config
        )
    fixed = {"norms": BRANCH, "hidden_act": "gelu", "layer_norm_eps": EPS}
    for name, expected in fixed.items():
        if (found := sizes[name]) != expected:
            raise ValueError(f"vision_config.{name}: found {found!r}, expected {expected!r}")
    return Eva2Tower(
        weights=None,
        depth=sizes["num_hidden_layers"],
        image_size=sizes["image_size"],
        patch_size=sizes["patch_size"],
        width=sizes["hidden_size"],
        heads=sizes["num_heads"],
        feedforward=sizes["intermediate_size"],
        mean=mean,
        std=std,
    )
