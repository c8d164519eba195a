"""Names of a CLIP image tower here (open_clip's) and in transformers' CLIPVisionModel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_mllm.weights.keymap import SPLIT_3, KeyMap, Rule

LAYER, BLOCK = "encoder.layers.{n}", "transformer.resblocks.{n}"


def _split_in(kind: str) -> tuple[str, tuple[str, ...], Any]:
    return f"{BLOCK}.attn.in_proj_{kind}", tuple(f"{LAYER}.self_attn.{each}_proj.{kind}" for each in "qkv"), SPLIT_3


def unused(config: Mapping[str, Any], fields: Mapping[str, str]) -> bool:
    """Whether block `n` of a folder's tower lies behind the layer that its connector reads."""
    if "vision_feature_layer" not in config or "vision_config" not in config:
        return False
    layer = config["vision_feature_layer"]
    total = config["vision_config"].get("num_hidden_layers", 12)  # transformers leaves defaults out of config.json
    return int(fields["n"]) >= (layer if layer >= 0 else total + 1 + layer)


CLIP_KEYS = KeyMap(
    (
        Rule(ours=None, theirs=(f"{LAYER}.{{...}}",), when=unused),
        Rule(ours=None, theirs=("post_layernorm.{...}",)),
        Rule(ours=None, theirs=("embeddings.position_ids",)),
        ("class_embedding", "embeddings.class_embedding"),
        ("positional_embedding", "embeddings.position_embedding.weight"),
        ("conv1.weight", "embeddings.patch_embedding.weight"),
        ("ln_pre.{...}", "pre_layrnorm.{...}"),
        (f"{BLOCK}.ln_1.{{...}}", f"{LAYER}.layer_norm1.{{...}}"),
        _split_in("weight"),
        _split_in("bias"),
        (f"{BLOCK}.attn.out_proj.{{...}}", f"{LAYER}.self_attn.out_proj.{{...}}"),
        (f"{BLOCK}.ln_2.{{...}}", f"{LAYER}.layer_norm2.{{...}}"),
        (f"{BLOCK}.mlp.c_fc.{{...}}", f"{LAYER}.mlp.fc1.{{...}}"),
        (f"{BLOCK}.mlp.c_proj.{{...}}", f"{LAYER}.mlp.fc2.{{...}}"),
    )
)
"""`VisionTower` <-> `CLIPVisionModel` (the names below `vision_model.`, which newer files leave out)."""
