"""Heads that look back by construction, before any training."""

from __future__ import annotations

import pytest
import torch

from lightning_mllm.language.causal import CausalLM

SIZES = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "attention_bias": True,
    "initializer_range": 0.1,
}


def test_first_heads_look_back_their_distance_and_the_others_do_not():
    torch.manual_seed(0)
    model = CausalLM(config=SIZES, lookback=3).build().eval()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attention = model(torch.randint(0, 64, (4, 24)), output_attentions=True).attentions[0]
    for head in range(4):
        share = [attention[:, head].diagonal(-back, 1, 2)[:, 8:].mean().item() for back in (1, 2, 3)]
        if head < 3:
            assert max(range(3), key=share.__getitem__) == head
            assert share[head] > 0.3
        else:
            assert max(share) < 0.15


def test_it_learns_from_an_otherwise_equal_start():
    torch.manual_seed(0)
    plain = CausalLM(config=SIZES, lookback=0).build().state_dict()
    torch.manual_seed(0)
    changed = CausalLM(config=SIZES, lookback=2).build().state_dict()
    differing = {name for name in plain if not torch.equal(plain[name], changed[name])}
    prefix = "model.layers.0.self_attn"
    assert differing == {f"{prefix}.{p}_proj.{kind}" for p in "qk" for kind in ("weight", "bias")}


@pytest.mark.parametrize(("change", "lookback"), [({"attention_bias": False}, 1), ({}, 5)])
def test_models_without_biases_or_heads_are_refused(change: dict[str, bool], lookback: int):
    with pytest.raises(ValueError, match="expected biases"):
        CausalLM(config={**SIZES, **change}, lookback=lookback).build()
