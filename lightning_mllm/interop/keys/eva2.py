"""Names of an EVA2-CLIP-E tower's tensors here, in timm, and in the public CogVLM checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_mllm.weights.keymap import KeyMap, Rule, RuleLike

HERE, THERE = "blocks.{n}", "transformer.layers.{n}"


def _without_keys(bias: Tensor) -> tuple[Tensor, ...]:
    query, _, value = bias.chunk(3)
    return query, value


def _with_keys(parts: Sequence[Tensor]) -> Tensor:
    query, value = parts
    return torch.cat([query, torch.zeros_like(query), value])


def _same(names: Sequence[str]) -> list[RuleLike]:
    return [(name, name) for name in names]


EVA2_KEYS = KeyMap(
    [
        # What stands behind the last block, of a tower that classifies or is compared with text.
        *(Rule(ours=None, theirs=(f"{name}.{{...}}",)) for name in ("norm", "fc_norm", "head")),
        Rule(ours=None, theirs=(f"{HERE}.attn.k_bias",)),
        ("patch_embed.{...}", "patch_embed.proj.{...}"),
        (f"{HERE}.attn.qkv.bias", (f"{HERE}.attn.q_bias", f"{HERE}.attn.v_bias"), (_without_keys, _with_keys)),
        *_same(["cls_token", "pos_embed", f"{HERE}.attn.qkv.weight"]),
        *_same([f"{HERE}.{name}.{{...}}" for name in ("norm1", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")]),
    ]
)
"""`Eva2Vision` <-> timm's `Eva` with `use_post_norm`.

timm has no bias of keys: it moves all logits of a row alike. A tower trained here loses it on the way there, and comes
back with zeros, its outputs the same.
"""

COGVLM_VISION_KEYS = KeyMap(
    [
        ("cls_token", "patch_embedding.cls_embedding", (lambda ours: ours[0], lambda theirs: theirs[None])),
        (
            "pos_embed",
            "patch_embedding.position_embedding.weight",
            (lambda ours: ours[0], lambda theirs: theirs[None]),
        ),
        ("patch_embed.{...}", "patch_embedding.proj.{...}"),
        # The names are those of a block with its norms before the branches; they stand behind them all the same.
        (f"{HERE}.norm1.{{...}}", f"{THERE}.input_layernorm.{{...}}"),
        (f"{HERE}.attn.qkv.{{...}}", f"{THERE}.attention.query_key_value.{{...}}"),
        (f"{HERE}.attn.proj.{{...}}", f"{THERE}.attention.dense.{{...}}"),
        (f"{HERE}.norm2.{{...}}", f"{THERE}.post_attention_layernorm.{{...}}"),
        (f"{HERE}.mlp.fc1.{{...}}", f"{THERE}.mlp.fc1.{{...}}"),
        (f"{HERE}.mlp.fc2.{{...}}", f"{THERE}.mlp.fc2.{{...}}"),
    ]
)
"""`Eva2Vision` <-> the public CogVLM checkpoints, where these names stand below `model.vision.`."""
