from __future__ import annotations

from typing import Any, Literal

import pytest
import torch

from lightning_mllm.component import ComponentSpec
from lightning_mllm.connectors.image_boundary import ImageBoundaryConnector
from lightning_mllm.contracts import TokenKind
from lightning_mllm.training.initialise import build_empty, initialise, materialise
from lightning_mllm.weights.stage_weights import InitialTensors


def test_every_view_stands_between_the_same_two_vectors() -> None:
    spec = ImageBoundaryConnector(width=4, start="uniform")
    assert isinstance(spec, ComponentSpec)
    module, visual = spec.build(), torch.randn(6, 4)
    found = module(visual, views=3)
    assert found[TokenKind.IMAGE] is visual
    for kind, vector in ((TokenKind.IMAGE_BEGIN, module.begin), (TokenKind.IMAGE_END, module.end)):
        assert found[kind].shape == (3, 4) and (found[kind] == vector[0, 0]).all()
    assert spec.pretrained() is None and spec.blocks(module) == []


def test_both_learn_from_every_view_and_what_they_surround_too() -> None:
    module, visual = ImageBoundaryConnector(width=4).build(), torch.randn(6, 4, requires_grad=True)
    found = module(visual, views=3)
    weights = {kind: torch.randn_like(each) for kind, each in found.items()}
    torch.stack([(each * weights[kind]).sum() for kind, each in found.items()]).sum().backward()
    for parameter, kind in ((module.begin, TokenKind.IMAGE_BEGIN), (module.end, TokenKind.IMAGE_END)):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, weights[kind].sum(0).view(1, 1, 4))
    assert visual.grad is not None and torch.equal(visual.grad, weights[TokenKind.IMAGE])


@pytest.mark.parametrize("start", ["zeros", "uniform"])
def test_values_before_training(start: Literal["zeros", "uniform"]) -> None:
    spec = ImageBoundaryConnector(width=2000, start=start)
    net: Any = torch.nn.ModuleDict({"image_boundary": build_empty(spec)})
    materialise(net, torch.device("cpu"))
    assert set(initialise(net, {"image_boundary": spec}, InitialTensors({}, {})).values()) == {"fresh"}
    begin, end = net["image_boundary"].begin.detach(), net["image_boundary"].end.detach()
    assert begin.shape == end.shape == (1, 1, 2000)
    if start == "zeros":
        assert not begin.any() and not end.any()
    else:
        assert not torch.equal(begin, end)
        for each in (begin, end):
            assert 0 <= each.min() < 0.01 and 0.99 < each.max() < 1 and abs(each.mean() - 0.5) < 0.03


def test_vectors_keep_the_dtype_of_what_they_surround() -> None:
    found = ImageBoundaryConnector(width=4).build()(torch.zeros(2, 4, dtype=torch.bfloat16), views=1)
    assert all(each.dtype == torch.bfloat16 for each in found.values())


def test_names() -> None:
    assert list(ImageBoundaryConnector(width=2).build().state_dict()) == ["begin", "end"]
    with pytest.raises(ValueError, match=r"image_boundary\.start: found 'ones', expected one of zeros, uniform"):
        ImageBoundaryConnector(start="ones")  # pyright: ignore
