from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from lightning_mllm.interop.keys.llama import llama_keys


def config(head: int, queries: int = 4, keys: int = 2) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=queries,
        num_key_value_heads=keys,
        head_dim=head,
        vocab_size=30,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
    )


def turned(x: Tensor, theta: float) -> Tensor:
    """Meta's `apply_rotary_emb` (released llama/model.py): neighbours are one complex number. x f[T, heads, head]."""
    head = x.shape[-1]
    speeds = 1.0 / theta ** (torch.arange(0, head, 2).float() / head)
    angles = torch.outer(torch.arange(len(x)).float(), speeds)
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)[:, None]).flatten(2)


@pytest.mark.parametrize("head", [4, 6, 128])
def test_the_turned_heads_attend_alike(head: int) -> None:
    """The scores of Meta's formula on their matrices are those of transformers' on ours."""
    settings = config(head)
    wq, wk = torch.randn(4 * head, 24), torch.randn(2 * head, 24)
    theirs = {"layers.1.attention.wq.weight": wq, "layers.1.attention.wk.weight": wk}
    ours = dict(llama_keys(head).to_ours(theirs))
    x, steps = torch.randn(7, 24), torch.arange(7)[None]
    expected = [turned((x @ w.T).unflatten(1, (-1, head)), 100.0) for w in (wq, wk)]
    q, k = ((x @ ours[f"model.layers.1.self_attn.{each}_proj.weight"].T).unflatten(1, (-1, head)) for each in "qk")
    cos, sin = LlamaRotaryEmbedding(settings)(x, steps)
    found = apply_rotary_pos_emb(q.transpose(0, 1)[None], k.transpose(0, 1)[None], cos, sin)

    def scores(q: Tensor, k: Tensor) -> Tensor:
        return q @ k.repeat_interleave(2, 0).transpose(1, 2) / math.sqrt(head)

    mine = scores(found[0][0], found[1][0])
    assert_close(mine, scores(*(each.transpose(0, 1) for each in expected)), atol=1e-4, rtol=1e-5)


def test_total_and_bit_exact_both_ways() -> None:
    keys, state = llama_keys(6), LlamaForCausalLM(config(6)).state_dict()
    theirs = dict(keys.to_theirs(state.items()))
    block = [
        *(f"attention.w{each}" for each in "qkvo"),
        *(f"feed_forward.w{k}" for k in (1, 2, 3)),
        "attention_norm",
        "ffn_norm",
    ]
    names = ["tok_embeddings", *(f"layers.{n}.{name}" for n in range(2) for name in block), "norm", "output"]
    assert list(theirs) and set(theirs) == {f"{name}.weight" for name in names}
    assert not torch.equal(theirs["layers.0.attention.wq.weight"], state["model.layers.0.self_attn.q_proj.weight"])
    back = dict(keys.to_ours({**theirs, "rope.freqs": torch.ones(3)}))
    assert back.keys() == state.keys()
    assert [name for name, tensor in back.items() if not torch.equal(tensor, state[name])] == []


def test_neighbours_become_halves() -> None:
    rows = torch.arange(16).view(16, 1)
    ((_, found),) = llama_keys(8).to_ours({"layers.0.attention.wk.weight": rows})
    assert found.flatten().tolist() == [0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15]
