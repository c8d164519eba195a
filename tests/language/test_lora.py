from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lightning_mllm.language.lora import Lora, adapted_layers, add_lora, fresh_lora, merge_lora
from tests.language.models import small

LORA = Lora(r=4, alpha=8, dropout=0.0)
TOKENS = torch.arange(6)[None]


@pytest.mark.parametrize(("name", "linears"), [("llama", 14), ("opt", 12)])
def test_every_linear_layer_but_the_head_is_adapted(name: str, linears: int) -> None:
    model = small(name)
    plain = model.state_dict()
    before = model(TOKENS).logits
    add_lora(model, LORA)
    state = model.state_dict()
    adapters = [each for each in state if ".lora_" in each]
    assert len(adapters) == 2 * linears and not any("lm_head" in each for each in adapters)
    assert {each.replace(".base_layer.", ".") for each in state if ".lora_" not in each} == set(plain)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(adapters)
    # B is zero at first.
    assert_close(model(TOKENS).logits, before, atol=0, rtol=0)


def parts() -> dict[str, nn.Module]:
    vision = nn.ModuleDict({"attn": nn.MultiheadAttention(4, 2), "mlp": nn.Linear(4, 4)})
    return {"vision": vision, "language": small("llama")}


def test_targets_name_layers_of_the_net() -> None:
    names = adapted_layers(parts(), ("q_proj", "language.*.1.mlp.*_proj", "vision.*"))
    assert names == {
        "language": [
            *[f"model.layers.{n}.self_attn.q_proj" for n in range(2)],
            *[f"model.layers.1.mlp.{each}_proj" for each in ("gate", "up", "down")],
        ],
        "vision": ["mlp"],  # nobody calls what is inside torch's own attention
    }
    (every,) = adapted_layers(parts(), ()).values()
    assert len(every) == 14 and "lm_head" not in every


@pytest.mark.parametrize(
    ("target", "near"),
    [("q_porj", "'q_proj'"), ("language.*.q_porj", r"'language\.model\.\S+'"), ("lm_head", ".*_proj")],
)
def test_a_target_that_names_nothing_is_refused(target: str, near: str) -> None:
    with pytest.raises(
        ValueError, match=rf"stage\.lora\.targets: '{re.escape(target)}' names no linear layer, .*{near}"
    ):
        adapted_layers(parts(), ("q_proj", target))


def test_folded_adapters_say_the_same() -> None:
    model = small("llama")
    add_lora(model, LORA)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_()
    plain = small("llama")
    state = model.state_dict()
    plain.load_state_dict(merge_lora(state, LORA.scale), strict=True)
    expected = model.eval()(TOKENS).logits
    assert_close(plain(TOKENS).logits, expected, atol=1e-4, rtol=0)
    layer = "model.layers.0.mlp.up_proj"
    assert not torch.equal(plain.state_dict()[f"{layer}.weight"], state[f"{layer}.base_layer.weight"])
    assert torch.equal(plain.state_dict()["lm_head.weight"], state["lm_head.weight"])


def test_folding_keeps_biases_and_dtypes() -> None:
    state = {
        "q.base_layer.weight": torch.zeros(2, 3, dtype=torch.bfloat16),
        "q.base_layer.bias": torch.ones(2),
        "q.lora_A.default.weight": torch.ones(1, 3),
        "q.lora_B.default.weight": torch.ones(2, 1),
        "norm.weight": torch.ones(2),
    }
    merged = merge_lora(state, 0.5)
    assert list(merged) == ["q.weight", "q.bias", "norm.weight"]
    assert merged["q.weight"].dtype == torch.bfloat16 and (merged["q.weight"] == 0.5).all()


def test_fresh_values() -> None:
    generator = torch.Generator().manual_seed(3)
    down = fresh_lora("q.lora_A.default.weight", torch.Size((4, 32)), generator)
    layer = nn.Linear(32, 4)
    assert down.abs().max() <= layer.weight.abs().max() * 1.1 and down.std() > 0.05
    assert not fresh_lora("q.lora_B.default.weight", torch.Size((32, 4)), generator).any()
    again = fresh_lora("q.lora_A.default.weight", torch.Size((4, 32)), torch.Generator().manual_seed(3))
    assert torch.equal(down, again)


@pytest.mark.parametrize(("setting", "value"), [("r", 0), ("alpha", 0), ("dropout", 1.0), ("dropout", -0.1)])
def test_sizes_out_of_range(setting: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"lora\.{setting}: found {value}"):
        Lora(**{setting: value})  # pyright: ignore[reportArgumentType]


def test_an_unknown_bias_is_refused() -> None:
    with pytest.raises(ValueError, match=r"lora\.bias: found 'some', expected one of none, lora_only"):
        Lora(bias="some")  # pyright: ignore[reportArgumentType]
