"""A fresh language model whose first layer starts with heads that look a fixed number of tokens back.

Answering "what colour is the circle?" from text needs two heads in a row: one that gathers a word's neighbours, one
that finds the word asked about. Neither is worth anything without the other, so gradient descent sits on a plateau for
thousands of steps; given the first, it leaves it within hundreds. How a head is made to attend by distance alone
depends on how the model tells positions:

    rotary (Llama)     query and key are constant vectors, the biases of both projections
    learned (OPT)      the table starts as sines in some dimensions, which query and key read, turned against each other
    relative (T5)      the encoder's bias is high at one distance; it is shared by all layers
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

SHARPNESS = 5.0
"""Rotary: length of the constant query and key in each plane of rotation: the distance meant gets most attention."""

PEAK = 12.0
"""Learned: the attention score at the distance meant, where other distances have at most half of it."""

BIAS = 6.0
"""Relative: the attention score at the distance meant, where others have about 0."""


def add_previous_token_heads(model: PreTrainedModel, heads: int) -> None:
    """Makes heads 0, 1, ... of the first layer start by looking 1, 2, ... tokens back.

    Raises:
        ValueError: The model has fewer heads, or rotary positions and no attention biases (`attention_bias: true`).
    """
    config: Any = model.config
    body: Any = model.base_model
    available = getattr(config, "num_key_value_heads", config.num_attention_heads)
    if heads > available:
        raise ValueError(
            f"language.previous_token_heads: found {heads} with {available} heads, expected at most as many"
        )
    with torch.no_grad():
        if config.model_type == "t5":
            _relative(body.encoder.block[0].layer[0].SelfAttention.relative_attention_bias, heads)
        elif config.model_type == "opt":
            _learned(body.decoder, heads)
        else:
            _rotary(body.layers[0].self_attn, config.rope_parameters["rope_theta"], heads)


def _rotary(block: nn.Module, theta: float, heads: int) -> None:
    attention: Any = block
    if attention.q_proj.bias is None:
        raise ValueError(
            "language.previous_token_heads: found attention_bias False, expected rotary attention with biases"
        )
    width = attention.head_dim
    frequencies = theta ** (-torch.arange(0, width, 2) / width)
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


def _learned(opt: nn.Module, heads: int) -> None:
    decoder: Any = opt
    words: Tensor = decoder.embed_tokens.weight
    places: Tensor = decoder.embed_positions.weight
    attention = decoder.layers[0].self_attn
    width, deviation = attention.head_dim, places.std()
    reserved, planes = slice(0, width), width // 2
    # The power keeps the sum of cosines low at every distance but 0: equal steps would make it periodic.
    frequencies = torch.pi * (torch.arange(1, planes + 1, device=places.device) / planes) ** 1.4
    angles = torch.arange(len(places), device=places.device)[:, None] * frequencies
    amplitude = 2 * deviation
    places[:, reserved] = amplitude * torch.cat([angles.cos(), angles.sin()], 1)
    words[:, reserved] = 0
    # What the first norm makes of the amplitude, words and places being random elsewhere.
    share = width / words.shape[1]
    variance = 2 * deviation**2 * (1 - share) + amplitude**2 / 2 * share
    scale = (PEAK * width**0.5 / (planes * amplitude**2 / variance)).sqrt()
    for head in range(heads):
        rows = slice(head * width, (head + 1) * width)
        for projection, distance in ((attention.q_proj, head + 1), (attention.k_proj, 0)):
            turn = frequencies * distance
            cos, sin = turn.cos().diag(), turn.sin().diag()
            projection.weight[rows] *= 0.1
            projection.weight[rows, reserved] = scale * torch.cat([torch.cat([cos, sin], 1), torch.cat([-sin, cos], 1)])


def _relative(bias: nn.Embedding, heads: int) -> None:
    for head in range(heads):
        # Of both directions, buckets 0, 1, ... are the distances back; small ones have a bucket each.
        bias.weight[head + 1, head] += BIAS
