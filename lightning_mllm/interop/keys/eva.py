"""Names of an EVA tower's tensors here, in timm and LAVIS, and in transformers' `Blip2VisionModel`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_mllm.weights.keymap import KeyMap, Rule, RuleLike

HERE, THERE = "blocks.{n}", "encoder.layers.{n}"


def _halves(bias: Tensor) -> tuple[Tensor, ...]:
    return bias.chunk(2)


def _whole(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts))


def _with_keys_bias(bias: Tensor) -> Tensor:
    query, value = bias.chunk(2)
    return torch.cat([query, torch.zeros_like(query), value])


def _without_keys_bias(bias: Tensor) -> Tensor:
    query, _, value = bias.chunk(3)
    return torch.cat([query, value])


def _same(names: Sequence[str]) -> list[RuleLike]:
    return [(name, name) for name in names]


EVA_KEYS = KeyMap(
    [
        # What stands behind the last block, of a tower that classifies or is compared with text.
        *(Rule(ours=None, theirs=(f"{name}.{{...}}",)) for name in ("norm", "fc_norm", "head")),
        Rule(ours=None, theirs=(f"{HERE}.attn.k_bias",)),
        ("patch_embed.{...}", "patch_embed.proj.{...}"),
        (f"{HERE}.attn.qv_bias", (f"{HERE}.attn.q_bias", f"{HERE}.attn.v_bias"), (_halves, _whole)),
        *_same(["cls_token", "pos_embed", f"{HERE}.attn.qkv.weight"]),
        *_same([f"{HERE}.{name}.{{...}}" for name in ("norm1", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")]),
    ]
)
"""`EvaVision` <-> timm's `Eva`, and LAVIS, whose models call it `visual_encoder`."""

BLIP2_VISION_KEYS = KeyMap(
    [
        ("cls_token", "embeddings.class_embedding"),
        ("pos_embed", "embeddings.position_embedding"),
        ("patch_embed.{...}", "embeddings.patch_embedding.{...}"),
        (f"{HERE}.norm1.{{...}}", f"{THERE}.layer_norm1.{{...}}"),
        (f"{HERE}.attn.qkv.weight", f"{THERE}.self_attn.qkv.weight"),
        (f"{HERE}.attn.qv_bias", f"{THERE}.self_attn.qkv.bias", (_with_keys_bias, _without_keys_bias)),
        (f"{HERE}.attn.proj.{{...}}", f"{THERE}.self_attn.projection.{{...}}"),
        (f"{HERE}.norm2.{{...}}", f"{THERE}.layer_norm2.{{...}}"),
        (f"{HERE}.mlp.fc1.{{...}}", f"{THERE}.mlp.fc1.{{...}}"),
        (f"{HERE}.mlp.fc2.{{...}}", f"{THERE}.mlp.fc2.{{...}}"),
    ]
)
"""`EvaVision` <-> `Blip2VisionModel` (and InstructBLIP's) without its last norm, which here is a part of its own.

The keys' bias there is zero and stays so: it moves all logits of a row alike.
"""
