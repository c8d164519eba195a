"""Small Q-Formers with values that no initialisation would give."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_mllm.connectors.qformer import QFormer
from lightning_mllm.connectors.qformer_connector import QFormerConnector

SIZES: dict[str, Any] = {
    "queries": 3,
    "width": 16,
    "layers": 3,
    "heads": 2,
    "feedforward": 24,
    "vocab": 21,
    "positions": 9,
    "in_width": 10,
}
HF_SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 21,
    "max_position_embeddings": 9,
    "encoder_hidden_size": 10,
}


def shaken(module: nn.Module) -> nn.Module:
    """The same with every parameter moved, so that a bias or a norm in the wrong place shows."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    return module.eval()


def qformer(text: str, **changes: Any) -> QFormer:
    built: Any = shaken(QFormerConnector(**{**SIZES, "text": text, **changes}).build())
    return built


def rows(*lengths: int, side: str = "right", vocab: int = 21) -> tuple[Tensor, Tensor]:
    """Tokens and which of them are real; the others are what a batch pads with."""
    most = max(lengths)
    real = torch.arange(most) < torch.tensor(lengths)[:, None]
    real = real.flip(1) if side == "left" else real
    return torch.randint(1, vocab, (len(lengths), most)).masked_fill(~real, -100), real
