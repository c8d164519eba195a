"""Small language models."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from lightning_mllm.language.causal import CausalLM

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 64,
    "max_position_embeddings": 64,
}
OPT: dict[str, Any] = {
    "model_type": "opt",
    "hidden_size": 32,
    "word_embed_proj_dim": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "dropout": 0.0,
}
QWEN: dict[str, Any] = {**LLAMA, "model_type": "qwen2"}
T5: dict[str, Any] = {
    "model_type": "t5",
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_decoder_layers": 1,
    "num_heads": 2,
    "vocab_size": 64,
    "dropout_rate": 0.0,
    "pad_token_id": 0,
}
FLAN: dict[str, Any] = {**T5, "feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu", "tie_word_embeddings": False}
"""T5 1.1: gated, and a head of its own."""
CONFIGS = {"llama": LLAMA, "opt": OPT, "qwen2": QWEN}


def small(name: str) -> PreTrainedModel:
    return perturbed(CausalLM(config=CONFIGS[name]).build())


def perturbed(model: PreTrainedModel) -> PreTrainedModel:
    """With larger random values than the initialisation gives, so that differences show."""
    model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model
