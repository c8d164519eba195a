"""The sizes of a CLIP image tower as transformers states them, and as open_clip does."""

from __future__ import annotations

from typing import Any

from open_clip.transformer import QuickGELU
from transformers import CLIPVisionConfig

from lightning_mllm.vision.tower import VisionTower


def clip_config(tower: VisionTower, image_size: int) -> CLIPVisionConfig:
    """The configuration of a `CLIPVisionModel` with the blocks that `tower` has.

    Raises:
        ValueError: The tower's vectors are those behind its last norm, which is none of transformers' hidden states.
    """
    if tower.ln_post is not None:
        raise ValueError("vision.norm: found true, expected false: folders of transformers have no place for it")
    blocks: Any = tower.transformer.resblocks
    return CLIPVisionConfig(
        hidden_size=tower.class_embedding.shape[0],
        intermediate_size=blocks[0].mlp.c_fc.out_features,
        num_hidden_layers=len(blocks),
        num_attention_heads=blocks[0].attn.num_heads,
        image_size=image_size,
        patch_size=tower.conv1.kernel_size[0],
        hidden_act="quick_gelu" if isinstance(blocks[0].mlp.gelu, QuickGELU) else "gelu",
        layer_norm_eps=blocks[0].ln_1.eps,
    )


def open_clip_config(config: CLIPVisionConfig, mean: tuple[float, ...], std: tuple[float, ...]) -> dict[str, Any]:
    """The configuration of an open_clip model whose image tower is `config`'s; its text tower is never built.

    Args:
        config: Of the tower, with all its blocks.
        mean: Of RGB in [0, 1], by channel.
        std: Likewise.

    Raises:
        ValueError: An activation that open_clip does not have.
    """
    if config.hidden_act not in ("gelu", "quick_gelu"):
        raise ValueError(f"vision_config.hidden_act: found {config.hidden_act!r}, expected gelu or quick_gelu")
    return {
        "model_cfg": {
            "embed_dim": config.projection_dim,
            "quick_gelu": config.hidden_act == "quick_gelu",
            "vision_cfg": {
                "image_size": config.image_size,
                "patch_size": config.patch_size,
                "layers": config.num_hidden_layers,
                "width": config.hidden_size,
                "head_width": config.hidden_size // config.num_attention_heads,
                "mlp_ratio": config.intermediate_size / config.hidden_size,
            },
            "text_cfg": {},
        },
        "preprocess_cfg": {"mean": mean, "std": std},
    }
