"""Names of a Llama's tensors in transformers, and as Meta and all that follows it (LLaMA2-Accessory) write them.

Rotary positions turn pairs of a head's numbers. Meta's pairs are neighbours, transformers' are the two halves:

    Meta           0 1 | 2 3 | 4 5 | 6 7          rows of a head of wq and wk
    transformers   0 2 4 6 | 1 3 5 7              the same, as q_proj and k_proj
"""

from __future__ import annotations

from torch import Tensor

from lightning_mllm.weights.keymap import KeyMap, Rule, RuleLike

HEAD = 128
"""Rows of a head of every LLaMA and LLaMA 2 (arXiv 2302.13971, 2307.09288)."""

OURS, THEIRS = "model.layers.{n}", "layers.{n}"


def llama_keys(head: int = HEAD) -> KeyMap:
    """`LlamaForCausalLM` <-> Meta's `Transformer`, of heads with so many rows."""

    def neighbours(halves: Tensor) -> Tensor:
        return halves.unflatten(0, (-1, 2, head // 2)).transpose(1, 2).flatten(0, 2)

    def halves(neighbours: Tensor) -> Tensor:
        return neighbours.unflatten(0, (-1, head // 2, 2)).transpose(1, 2).flatten(0, 2)

    rotated: list[RuleLike] = [
        (f"{OURS}.self_attn.{each}_proj.{{...}}", f"{THEIRS}.attention.w{each}.{{...}}", (neighbours, halves))
        for each in "qk"
    ]
    plain = {
        "self_attn.v_proj": "attention.wv",
        "self_attn.o_proj": "attention.wo",
        "mlp.gate_proj": "feed_forward.w1",
        "mlp.down_proj": "feed_forward.w2",
        "mlp.up_proj": "feed_forward.w3",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    return KeyMap(
        [
            Rule(ours=None, theirs=("rope.freqs",)),  # a constant
            ("model.embed_tokens.{...}", "tok_embeddings.{...}"),
            *rotated,
            *((f"{OURS}.{ours}.{{...}}", f"{THEIRS}.{theirs}.{{...}}") for ours, theirs in plain.items()),
            ("model.norm.{...}", "norm.{...}"),
            ("lm_head.{...}", "output.{...}"),
        ]
    )
