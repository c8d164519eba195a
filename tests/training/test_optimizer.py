from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_mllm.contracts import ParamGroup
from lightning_mllm.training.freezing import match
from lightning_mllm.training.optimizer import layer_shares, parameter_groups
from lightning_mllm.vision.eva import EvaTower


def tower(depth: int) -> nn.Module:
    net = nn.Module()
    net.vision = EvaTower(depth=depth, width=8, heads=2, feedforward=8, image_size=28).build()
    net.ln_vision = nn.LayerNorm(8)
    return net


def rates(net: nn.Module, table: dict[str, ParamGroup]) -> dict[str, float]:
    """Parameter name -> its rate, where the stage's is 1."""
    groups = parameter_groups(net, match(dict(net.named_parameters()), table), table, lr=1.0, weight_decay=0.05)
    found = {id(p): group["lr"] for group in groups for _, p in group["params"]}
    assert len(found) == sum(len(group["params"]) for group in groups)
    return {name: found[id(p)] for name, p in net.named_parameters()}


def test_layers_have_the_rates_of_the_released_blip2() -> None:
    """`get_optimizer_params` of LAVIS: lr_scale^(layers + 1 - id), id being 0 for embeddings and n + 1 for block n."""
    layers = 39
    found = rates(tower(layers), {"vision.*": ParamGroup(layer_decay=0.95), "ln_vision.*": ParamGroup()})
    scales = [0.95 ** (layers + 1 - i) for i in range(layers + 2)]
    for name, rate in found.items():
        if name.startswith("ln_vision."):
            assert rate == 1.0
        else:
            part, _, rest = name.removeprefix("vision.").partition(".")
            expected = scales[int(rest.split(".")[0]) + 1 if part == "blocks" else 0]
            assert rate == pytest.approx(expected), name


def test_without_a_decay_a_pattern_has_one_rate_and_two_groups() -> None:
    net, table = tower(2), {"vision.*": ParamGroup(lr=0.5), "ln_vision.*": ParamGroup(weight_decay=0.1)}
    groups = parameter_groups(net, match(dict(net.named_parameters()), table), table, lr=1.0, weight_decay=0.05)
    assert [(group["name"], group["lr"], group["weight_decay"]) for group in groups] == [
        ("vision.*", 0.5, 0.05),
        ("vision.* (not decayed)", 0.5, 0.0),
        ("ln_vision.* (not decayed)", 1.0, 0.0),
    ]
    assert all(parameter.ndim > 1 for _, parameter in groups[0]["params"])
    torch.optim.AdamW(groups)


@pytest.mark.parametrize("decay_scalars", [False, True])
def test_scalars_are_decayed_where_it_is_said(decay_scalars: bool) -> None:
    """`get_optimizer_params` of LAVIS's blip2.py: all but tensors of one dimension and biases."""
    net = nn.Module()
    net.temperature = nn.Parameter(torch.ones([]))
    net.matrix, net.bias, net.vector = (nn.Parameter(torch.ones(*size)) for size in ((2, 2), (2, 2), (2,)))
    trained = dict.fromkeys(dict(net.named_parameters()), "*")
    groups = parameter_groups(net, trained, {"*": ParamGroup()}, lr=1.0, weight_decay=0.05, decay_scalars=decay_scalars)
    decayed = {id(p) for group in groups for _, p in group["params"] if group["weight_decay"]}
    assert {name for name, p in net.named_parameters() if id(p) in decayed} == (
        {"temperature", "matrix"} if decay_scalars else {"matrix"}
    )


def test_a_scale_is_of_the_rate_that_a_pattern_has() -> None:
    """CogVLM's tower at a tenth: of the stage's rate, or of its own."""
    table = {"vision.*": ParamGroup(lr_scale=0.1, layer_decay=0.5), "ln_vision.*": ParamGroup(lr=0.5, lr_scale=0.1)}
    found = rates(tower(1), table)
    assert found["vision.blocks.0.norm1.weight"] == pytest.approx(0.05)
    assert found["vision.cls_token"] == pytest.approx(0.025)
    assert found["ln_vision.weight"] == pytest.approx(0.05)
    with pytest.raises(ValueError, match=r"found lr_scale 0, expected a number above 0"):
        ParamGroup(lr_scale=0)


def test_the_number_of_a_tower_is_no_block() -> None:
    """In a mixture of towers a name has the numbers of group and place before that of the block."""
    names = [f"vision.groups.1.2.blocks.{i}.norm1.weight" for i in range(3)]
    shares = layer_shares(dict.fromkeys([*names, "vision.groups.1.2.cls_token"], "vision.*"), "vision.*", 0.5)
    assert list(shares.values()) == [0.125, 0.25, 0.5, 0.0625]


def test_a_decay_over_layers_needs_layers() -> None:
    with pytest.raises(ValueError, match=r"pattern 'ln_vision.\*' has a layer_decay, expected names with numbers"):
        rates(tower(1), {"vision.*": ParamGroup(), "ln_vision.*": ParamGroup(layer_decay=0.9)})
    with pytest.raises(ValueError, match=r"found layer_decay 1\.5, expected above 0 and at most 1"):
        ParamGroup(layer_decay=1.5)
