"""A small EVA2 tower, here and as CogVLM's released code computes it, after its description."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_mllm.vision.eva2 import Eva2Tower, Eva2Vision

TINY: dict[str, Any] = {
    "weights": None,
    "depth": 2,
    "image_size": 12,
    "patch_size": 4,
    "width": 16,
    "heads": 2,
    "feedforward": 24,
}


def tower(**changes: Any) -> Eva2Vision:
    """With values that no initialisation would give."""
    built = Eva2Tower(**{**TINY, **changes}).build()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    return built


def cogvlm_forward(state: dict[str, Tensor], pixels: Tensor, heads: int = 2, depth: int = 2) -> Tensor:
    """Visual vectors of normalised pixels, from tensors under the names of CogVLM's checkpoints."""

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)

    patch = state["patch_embedding.proj.weight"]
    x = F.conv2d(pixels, patch, state["patch_embedding.proj.bias"], stride=patch.shape[-1]).flatten(2).mT
    cls = state["patch_embedding.cls_embedding"].expand(len(x), -1, -1)
    x = torch.cat([cls, x], 1) + state["patch_embedding.position_embedding.weight"]
    for n in range(depth):
        layer = f"transformer.layers.{n}"
        q, k, v = linear(x, f"{layer}.attention.query_key_value").chunk(3, -1)
        found = []
        for part in range(heads):
            one = slice(part * q.shape[-1] // heads, (part + 1) * q.shape[-1] // heads)
            weights = (q[..., one] @ k[..., one].mT / (q.shape[-1] // heads) ** 0.5).softmax(-1)
            found.append(weights @ v[..., one])
        x = x + norm(linear(torch.cat(found, -1), f"{layer}.attention.dense"), f"{layer}.input_layernorm")
        inner = F.gelu(linear(x, f"{layer}.mlp.fc1"))
        x = x + norm(linear(inner, f"{layer}.mlp.fc2"), f"{layer}.post_attention_layernorm")
    return x[:, 1:]
