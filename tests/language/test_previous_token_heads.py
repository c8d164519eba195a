"""Heads that look back by construction, before any training."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_mllm.language.causal import CausalLM
from lightning_mllm.language.seq2seq import Seq2SeqLM

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
    model = CausalLM(config=SIZES, previous_token_heads=3).build().eval()
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
    plain = CausalLM(config=SIZES, previous_token_heads=0).build().state_dict()
    torch.manual_seed(0)
    changed = CausalLM(config=SIZES, previous_token_heads=2).build().state_dict()
    differing = {name for name in plain if not torch.equal(plain[name], changed[name])}
    prefix = "model.layers.0.self_attn"
    assert differing == {f"{prefix}.{p}_proj.{kind}" for p in "qk" for kind in ("weight", "bias")}


@pytest.mark.parametrize(
    ("change", "previous_token_heads", "sentence"),
    [
        ({"attention_bias": False}, 1, "expected rotary attention with biases"),
        ({}, 5, "found 5 with 4 heads, expected at most as many"),
    ],
)
def test_models_without_biases_or_heads_are_refused(change: dict[str, bool], previous_token_heads: int, sentence: str):
    with pytest.raises(ValueError, match=sentence):
        CausalLM(config={**SIZES, **change}, previous_token_heads=previous_token_heads).build()


OPT = {
    "model_type": "opt",
    "vocab_size": 64,
    "hidden_size": 128,
    "word_embed_proj_dim": 128,
    "ffn_dim": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "init_std": 0.08,
}
T5 = {
    "model_type": "t5",
    "vocab_size": 64,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
}


def looked(spec: CausalLM | Seq2SeqLM, length: int) -> torch.Tensor:
    """How much the heads of a fresh model's first layer look 0, 1, ... tokens back: f[heads, 6], over the row."""
    torch.manual_seed(0)
    model: Any = spec.build().eval()
    model.set_attn_implementation("eager")
    reader = model.get_encoder() if isinstance(spec, Seq2SeqLM) else model
    with torch.no_grad():
        attention = reader(torch.randint(0, 64, (4, length)), output_attentions=True).attentions[0]
    return torch.stack([attention.diagonal(-back, 2, 3)[..., 8:].mean((0, 2)) for back in range(6)], 1)


@pytest.mark.parametrize(("spec", "length"), [(CausalLM, 250), (Seq2SeqLM, 60)])
def test_heads_look_back_by_learned_and_by_relative_positions(spec: Any, length: int):
    config = OPT if spec is CausalLM else T5
    attention = looked(spec(config=config, previous_token_heads=3), length)
    for head in range(3):
        assert attention[head, head + 1] > 0.7
        assert attention[head].sum() - attention[head, head + 1] < 0.1
    assert attention[3].max() < 0.1
    assert looked(spec(config=config), length).max() < 0.2


def test_sines_take_a_part_of_the_positions_and_leave_words_the_rest():
    torch.manual_seed(0)
    plain = CausalLM(config=OPT).build().state_dict()
    torch.manual_seed(0)
    changed = CausalLM(config=OPT, previous_token_heads=2).build().state_dict()
    differing = {name for name in plain if not torch.equal(plain[name], changed[name])}
    body = "model.decoder"
    projections = {f"{body}.layers.0.self_attn.{each}_proj.weight" for each in "qk"}
    assert differing == projections | {f"{body}.embed_{each}.weight" for each in ("tokens", "positions")} | {
        "lm_head.weight"
    }
    words, places = changed[f"{body}.embed_tokens.weight"], changed[f"{body}.embed_positions.weight"]
    assert not words[:, :32].any() and torch.equal(words[:, 32:], plain[f"{body}.embed_tokens.weight"][:, 32:])
    assert torch.equal(places[:, 32:], plain[f"{body}.embed_positions.weight"][:, 32:])


def test_only_the_encoders_bias_is_changed():
    torch.manual_seed(0)
    plain = Seq2SeqLM(config=T5).build().state_dict()
    torch.manual_seed(0)
    changed = Seq2SeqLM(config=T5, previous_token_heads=2).build().state_dict()
    (name,) = {name for name in plain if not torch.equal(plain[name], changed[name])}
    assert name == "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
