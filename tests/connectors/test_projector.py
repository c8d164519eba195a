from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from lightning_mllm.component import ComponentSpec
from lightning_mllm.connectors.projector import LinearConnector, MlpConnector


@pytest.mark.parametrize("spec", [LinearConnector(), MlpConnector()])
def test_a_spec_is_a_fresh_part(spec: LinearConnector | MlpConnector) -> None:
    assert isinstance(spec, ComponentSpec)
    module = replace(spec, in_width=6, out_width=4).build()
    assert module(torch.ones(2, 3, 6)).shape == (2, 3, 4)
    assert spec.pretrained() is None and spec.blocks(module) == []


@pytest.mark.parametrize("act", ["linear", "gelu"])
def test_parity_with_transformers(act: str) -> None:
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(hidden_size=6, num_attention_heads=1),
        text_config=LlamaConfig(hidden_size=4, num_attention_heads=1),
        projector_hidden_act=act,
    )
    theirs, visual = LlavaMultiModalProjector(config), torch.randn(2, 3, 6)
    if act == "gelu":
        ours = MlpConnector(in_width=6, out_width=4).build()
        ours.load_state_dict(theirs.state_dict(), strict=True)
    else:
        ours = LinearConnector(in_width=6, out_width=4).build()
        ours.linear.load_state_dict(theirs.linear_1.state_dict())
        theirs.linear_2.weight.data.copy_(torch.eye(4))
        theirs.linear_2.bias.data.zero_()
    assert_close(ours(visual), theirs(visual), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("spec", "width", "count"),
    [
        (LinearConnector(), 4096, 4_198_400),
        (LinearConnector(), 5120, 5_248_000),
        (MlpConnector(), 4096, 20_979_712),
        (MlpConnector(), 5120, 31_467_520),
    ],
)
def test_published_sizes(spec: LinearConnector | MlpConnector, width: int, count: int) -> None:
    with torch.device("meta"):
        module = replace(spec, in_width=1024, out_width=width).build()
    assert sum(p.numel() for p in module.parameters()) == count


def test_names() -> None:
    assert list(LinearConnector(in_width=2, out_width=2).build().state_dict()) == ["linear.weight", "linear.bias"]
    names = {name.split(".")[0] for name in MlpConnector(in_width=2, out_width=2, depth=3).build().state_dict()}
    assert names == {"linear_1", "linear_2", "linear_3"}


def test_a_perceptron_of_one_layer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"connector\.depth: found 1, expected at least 2"):
        MlpConnector(depth=1)
