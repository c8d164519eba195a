from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from lightning_mllm.component import ComponentSpec
from lightning_mllm.connectors.glu import GluConnector


def test_a_spec_is_a_fresh_part() -> None:
    spec = GluConnector(in_width=6, out_width=4, inner=5)
    assert isinstance(spec, ComponentSpec)
    module = spec.build()
    assert module(torch.ones(2, 3, 6)).shape == (2, 3, 4)
    assert spec.pretrained() is None and spec.blocks(module) == []


def test_the_formula_term_by_term() -> None:
    module = GluConnector(in_width=6, out_width=4, inner=5).build()
    torch.nn.init.normal_(module.norm1.weight)
    torch.nn.init.normal_(module.norm1.bias)
    w = {name: tensor.double() for name, tensor in module.state_dict().items()}
    visual = torch.randn(2, 3, 6)
    x = visual.double() @ w["linear_proj.weight"].T
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    x = x * w["norm1.weight"] + w["norm1.bias"]
    x = x * 0.5 * (1 + torch.erf(x / 2**0.5))
    gate = x @ w["gate_proj.weight"].T
    expected = (gate * torch.sigmoid(gate) * (x @ w["dense_h_to_4h.weight"].T)) @ w["dense_4h_to_h.weight"].T
    assert_close(module(visual).double(), expected, atol=1e-6, rtol=1e-5)
    # Gate and value are not exchangeable, so their names matter.
    swapped = (F.silu(x @ w["dense_h_to_4h.weight"].T) * gate) @ w["dense_4h_to_h.weight"].T
    assert not torch.allclose(expected, swapped, atol=1e-3)


def test_published_size_and_names() -> None:
    with torch.device("meta"):
        module = GluConnector(in_width=1792, out_width=4096).build()
    assert sum(p.numel() for p in module.parameters()) == 142_614_528
    assert {name: tuple(p.shape) for name, p in module.named_parameters()} == {
        "linear_proj.weight": (4096, 1792),
        "norm1.weight": (4096,),
        "norm1.bias": (4096,),
        "gate_proj.weight": (11008, 4096),
        "dense_h_to_4h.weight": (11008, 4096),
        "dense_4h_to_h.weight": (4096, 11008),
    }


def test_an_empty_inner_layer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"connector\.inner: found 0, expected at least 1"):
        GluConnector(inner=0)
