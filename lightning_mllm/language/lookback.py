"""A fresh language model whose first layer starts with heads that look a fixed number of tokens back.

Answering "what colour is the circle?" from text needs two heads in a row: one that gathers a word's neighbours, one
that finds the word asked about. Neither is worth anything without the other, so gradient descent sits on a plateau for
thousands of steps; given the first, it leaves it within hundreds. With rotary positions a head whose query and key
are constant vectors attends by distance alone, and the biases of both projections are such vectors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

SHARPNESS = 5.0
"""Length of the constant query and key in each plane of rotation: the distance meant gets most of the attention."""


def look_back(model: PreTrainedModel, heads: int) -> None:
    """Makes heads 0, 1, ... of the first layer start by looking 1, 2, ... tokens back.

    Raises:
        ValueError: The model has no attention biases (`attention_bias: true`), or fewer heads.
    """
    config: Any = model.config
    body: Any = model.base_model
    attention = body.layers[0].self_attn
    if attention.q_proj.bias is None or heads > config.num_key_value_heads:
        raise ValueError(
            f"language.lookback: found {heads} with {config.num_key_value_heads} heads and attention_bias "
            f"{attention.q_proj.bias is not None}, expected biases and at least as many heads"
        )
    width = attention.head_dim
    frequencies = config.rope_parameters["rope_theta"] ** (-torch.arange(0, width, 2) / width)
    with torch.no_grad():
        for head in range(heads):
            rows = slice(head * width, (head + 1) * width)
            query, key = constant_attention(frequencies, distance=head + 1)
            for projection, bias in ((attention.q_proj, query), (attention.k_proj, key)):
                projection.bias[rows] = bias.to(projection.bias.device)
                projection.weight[rows] *= 0.1


def constant_attention(frequencies: Tensor, distance: int) -> tuple[Tensor, Tensor]:
    """Query and key f[D] whose rotated product is largest `distance` tokens back.

    Only the faster half of the planes is used: the slower half hardly tells neighbours apart and is left to content.

    Args:
        frequencies: f[D / 2], radians a token; plane `i` is made of the components `i` and `i + D / 2`.
    """
    used = (torch.arange(len(frequencies)) < len(frequencies) // 2) * SHARPNESS
    angle = frequencies * distance
    query = torch.cat([used, torch.zeros_like(used)])
    return query, torch.cat([used * angle.cos(), used * angle.sin()])
