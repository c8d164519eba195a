"""The eyes of a CogVLM (Wang et al. 2023, arXiv 2311.03079, sec. 2.1); this file travels with the weights.

    pixels f[N, 3, S, S] -> patches, class token, positions -> layers -> adapter -> [begin] + patches + [end] f[N, V, D]

The tower is EVA2-CLIP-E (norms behind attention and MLP) or a CLIP (norms before them, and one before the first layer).

Legend: N images, S side in pixels, V vectors of an image, D width of the language model.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer


class CogVLMPatches(nn.Module):
    """Pixels f[N, 3, S, S] to f[N, 1 + patches, D], the class token first."""

    def __init__(self, sizes: dict[str, Any]) -> None:
        super().__init__()
        width, patch = sizes["hidden_size"], sizes["patch_size"]
        clip = sizes["norms"] == "input"
        self.proj = nn.Conv2d(sizes["in_channels"], width, patch, stride=patch, bias=not clip)
        self.cls_embedding = nn.Parameter(torch.zeros(1, width))
        self.position_embedding = nn.Embedding(sizes["num_positions"], width)
        self.norm = nn.LayerNorm(width, sizes["layer_norm_eps"]) if clip else nn.Identity()

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.proj(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_embedding.expand(len(x), 1, -1), x], 1)
        return self.norm(x + self.position_embedding.weight)


class CogVLMVisionAttention(nn.Module):
    def __init__(self, sizes: dict[str, Any]) -> None:
        super().__init__()
        self.heads, width = sizes["num_heads"], sizes["hidden_size"]
        self.query_key_value, self.dense = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.query_key_value(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.dense(F.scaled_dot_product_attention(*parts.unbind(0)).transpose(1, 2).flatten(2))


class CogVLMVisionMLP(nn.Module):
    def __init__(self, sizes: dict[str, Any]) -> None:
        super().__init__()
        width, inner = sizes["hidden_size"], sizes["intermediate_size"]
        self.fc1, self.fc2, self.act = nn.Linear(width, inner), nn.Linear(inner, width), ACT2FN[sizes["hidden_act"]]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class CogVLMVisionLayer(GradientCheckpointingLayer):
    def __init__(self, sizes: dict[str, Any]) -> None:
        super().__init__()
        width, eps = sizes["hidden_size"], sizes["layer_norm_eps"]
        self.attention, self.mlp = CogVLMVisionAttention(sizes), CogVLMVisionMLP(sizes)
        self.input_layernorm, self.post_attention_layernorm = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.clip = sizes["norms"] == "input"

    def forward(self, x: Tensor) -> Tensor:
        for part, norm in ((self.attention, self.input_layernorm), (self.mlp, self.post_attention_layernorm)):
            x = x + (part(norm(x)) if self.clip else norm(part(x)))
        return x


class CogVLMTransformer(nn.Module):
    def __init__(self, sizes: dict[str, Any]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(CogVLMVisionLayer(sizes) for _ in range(sizes["num_hidden_layers"]))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class CogVLMAdapter(nn.Module):
    """From the tower's width to the language model's, through a gated layer."""

    def __init__(self, width: int, out: int, inner: int) -> None:
        super().__init__()
        self.linear_proj = nn.Linear(width, out, bias=False)
        self.norm1 = nn.LayerNorm(out)
        self.gate_proj = nn.Linear(out, inner, bias=False)
        self.dense_h_to_4h = nn.Linear(out, inner, bias=False)
        self.dense_4h_to_h = nn.Linear(inner, out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm1(self.linear_proj(x)))
        return self.dense_4h_to_h(F.silu(self.gate_proj(x)) * self.dense_h_to_4h(x))


class CogVLMVision(nn.Module):
    """Normalised pixels f[N, 3, S, S] to what the language model is shown, f[N, V, D]."""

    def __init__(self, sizes: dict[str, Any], width: int, inner: int) -> None:
        super().__init__()
        self.block: int = sizes["num_positions"] - 1 + 2
        self.patch_embedding = CogVLMPatches(sizes)
        self.transformer = CogVLMTransformer(sizes)
        fixed = torch.zeros(sizes["num_positions"] - 1, sizes["hidden_size"])
        self.output_position_embedding = (
            nn.Parameter(fixed, requires_grad=False) if sizes["output_position_scale"] else None
        )
        self.linear_proj = CogVLMAdapter(sizes["hidden_size"], width, inner)
        self.boi, self.eoi = (nn.Parameter(torch.zeros(1, 1, width)) for _ in range(2))

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_embedding(pixels.to(self.boi.device, self.patch_embedding.proj.weight.dtype))
        x = self.transformer(x)[:, 1:]
        x = self.linear_proj(x if self.output_position_embedding is None else x + self.output_position_embedding)
        return torch.cat([self.boi.expand(len(x), -1, -1), x, self.eoi.expand(len(x), -1, -1)], 1)
