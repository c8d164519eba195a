"""Rows without padding, and images that several rows look at: the same outputs and gradients for less work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close

from lightning_mllm.connectors import qformer_layers
from lightning_mllm.connectors.qformer import QFormer
from lightning_mllm.connectors.qformer_layers import Rows, real_tokens
from lightning_mllm.spans import recurring
from tests.connectors.qformers import SIZES, qformer, rows

SAME: dict[str, Any] = {"atol": 1e-6, "rtol": 1e-5}


def with_gradients(net: QFormer, visual: Tensor, run: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """What `run` gives of an image, and the gradients of a sum in which every value counts differently."""
    net.zero_grad()
    seen = visual.clone().requires_grad_()
    found = run(seen)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    (found * weights).sum().backward()
    gradients = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    return {"output": found.detach(), **gradients, **({} if seen.grad is None else {"visual": seen.grad})}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert_close(found[name], tensor, **SAME, msg=lambda text, name=name: f"{name}: {text}")


def test_rows_go_flat_and_back() -> None:
    real = torch.zeros(2, 20, dtype=torch.bool)
    real[0, :10], real[1, 14:] = True, True
    x = torch.randn(2, 2 + 20, 4)
    for mask, queries in ((real, 2), (real | True, 2)):
        found = Rows.of(mask, queries)
        flat = found.flat(x)
        assert len(flat) == 4 + int(mask.sum())
        assert torch.equal(flat, torch.cat([x[:, :2].flatten(0, 1), x[:, 2:][mask]]))
        seen = torch.cat([torch.ones(2, 2, dtype=torch.bool), mask], dim=1)
        assert torch.equal(found.padded(flat)[seen], x[seen])


@pytest.mark.parametrize("shared", ["vectors", "keys and values"])
def test_images_that_rows_share_are_those_of_rows_apart(shared: str) -> None:
    """ITM: N images with two texts each, then some of them again for the rows that they are drawn for."""
    net = qformer("full", cross_every=2)
    visual, drawn = torch.randn(2, 5, SIZES["in_width"]), torch.tensor([1, 1, 0])
    tokens, real = rows(6, 2, 3, 5, 1, 4, 4)

    def together(visual: Tensor) -> Tensor:
        images = visual if shared == "vectors" else net.encode_images_with_cache(visual)[1].images
        return net.encode_instructed([(images, 2), (images, drawn)], tokens, real)

    def apart(visual: Tensor) -> Tensor:
        return net.encode_instructed(torch.cat([visual, visual, visual[drawn]]), tokens, real)

    expected = with_gradients(net, visual, apart)
    assert_same(with_gradients(net, visual, together), expected)
    assert (expected["output"][0] - expected["output"][2]).abs().max() > 1e-2, "texts make a difference"
    with pytest.raises(AssertionError, match="images of 4 rows, expected those of 7"):
        net.encode_instructed([(visual, 2)], tokens, real)


def kept_bytes(run: Callable[[], Tensor]) -> int:
    """What backward needs, each storage once."""
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = run()
    assert output.requires_grad
    return sum(found.values())


def test_shared_images_need_less_memory() -> None:
    """Not twice the keys and values of an image that two texts are put to."""
    net, (tokens, real) = qformer("full", cross_every=1), rows(2, 2, 2, 2)
    visual = torch.randn(2, 200, SIZES["in_width"], requires_grad=True)
    layers, width = SIZES["layers"], SIZES["width"]
    apart = kept_bytes(lambda: net.encode_instructed(torch.cat([visual, visual]), tokens, real))
    once = kept_bytes(lambda: net.encode_instructed([(visual, 2)], tokens, real))
    assert apart - once >= 0.95 * 4 * 2 * 200 * (2 * width * layers + SIZES["in_width"])


def test_keys_and_values_of_an_image_are_made_once() -> None:
    net, (tokens, real) = qformer("full", cross_every=1), rows(2, 3, 1)
    made: list[int] = []
    for layer in net.layers:
        cross: Any = layer.cross_attention
        for part in (cross.key, cross.value):
            part.register_forward_hook(lambda _, given, __: made.append(given[0].shape[:-1].numel()))
    visual = torch.randn(3, 5, SIZES["in_width"])
    images = net.encode_images_with_cache(visual)[1].images
    net.encode_instructed([(images, torch.tensor([2, 0, 0]))], tokens, real)
    assert made == [3 * 5] * (2 * SIZES["layers"])


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_is_not_worked_on(side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU; where asking for it would wait for the device, padding stays, and the numbers are the same."""
    net, (tokens, real) = qformer("full"), rows(7, 2, 1, 4, side=side)
    visual = torch.randn(4, 5, SIZES["in_width"])
    seen: list[int] = []
    net.layers[0].get_submodule("text_feed_forward").register_forward_hook(
        lambda _, given, __: seen.append(given[0].shape[:-1].numel())
    )

    def every_pass(visual: Tensor) -> Tensor:
        _, kept = net.encode_images_with_cache(visual)
        text = [net.encode_text(tokens, real), net.decode_text(tokens, real, kept)]
        found = [net.encode_instructed(visual, tokens, real).flatten(), *(each[real].flatten() for each in text)]
        if side == "right":
            found.append(net.encode_first_token(tokens, real).flatten())
            assert_close(found[-1].view(4, -1), text[0][:, 0], **SAME)
        return torch.cat(found)

    without = with_gradients(net, visual, every_pass)
    passes, known = len(seen), int(real.sum())
    assert seen == [recurring(known)] * passes and known < recurring(known) < real.numel()
    monkeypatch.setattr(qformer_layers, "real_tokens", lambda real: None)
    assert_same(without, with_gradients(net, visual, every_pass))
    assert seen[passes:] == [real.numel()] * passes


def test_a_text_without_its_first_token_is_refused() -> None:
    net, (tokens, real) = qformer("full"), rows(3, 2, side="left")
    with pytest.raises(AssertionError, match="1 of 2 texts begin at their first place"):
        net.encode_first_token(tokens, real)


def test_padding_is_not_asked_for_where_tensors_have_no_values() -> None:
    """`mllm memory` tells what a GPU needs, which keeps padding; negatives drawn from fake similarities are fake."""
    real = torch.arange(40)[None] < 20
    assert real_tokens(real) is not None
    assert real_tokens(real.to("meta")) is None
    assert real_tokens(FakeTensorMode().from_tensor(real)) is None
