from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm.models.eva
import torch
from torch import Tensor
from torch.testing import assert_close

from lightning_mllm.component import ComponentSpec, ResizableComponent
from lightning_mllm.interop.keys.eva import BLIP2_VISION_KEYS, EVA_KEYS
from lightning_mllm.training.initialise import build_empty, initialise, materialise
from lightning_mllm.vision.eva import EvaTower, EvaVision
from lightning_mllm.weights.files import write_tensors
from lightning_mllm.weights.stage_weights import InitialTensors
from tests.vision.evas import TINY, pixels, theirs, tower


def images(count: int = 2, size: int = 12) -> Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)


def test_parity_with_transformers_before_its_last_norm() -> None:
    ours = tower()
    other, seen = theirs(ours), images()
    embedded = other.embeddings(pixels(seen, ours))
    expected = other.encoder(inputs_embeds=embedded).last_hidden_state
    found, weight = ours(seen), torch.randn_like(expected)
    assert found.shape == (2, 10, 16)
    assert_close(found, expected, atol=1e-5, rtol=0)
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    gradients = {name: p.grad for name, p in other.named_parameters() if p.grad is not None}
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, name
    own = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    for name, gradient in BLIP2_VISION_KEYS.to_ours(gradients):
        assert_close(own.pop(name), gradient, atol=1e-4, rtol=1e-5, msg=name)
    assert own == {}


def test_parity_with_timm() -> None:
    ours = tower()
    other: Any = timm.models.eva.Eva(
        img_size=12, patch_size=4, embed_dim=16, depth=3, num_heads=2, mlp_ratio=1.5, global_pool="token", num_classes=0
    )
    state = dict(EVA_KEYS.to_theirs(ours.state_dict().items()))
    assert other.load_state_dict(state, strict=False).unexpected_keys == []
    seen = images()
    x = other.patch_embed(pixels(seen, ours))
    x = torch.cat([other.cls_token.expand(2, -1, -1), x], 1) + other.pos_embed
    for block in other.blocks[:2]:
        x = block(x)
    assert_close(ours(seen), x, atol=1e-5, rtol=0)


def test_published_size() -> None:
    with torch.device("meta"):
        module = EvaTower().build()
    # transformers counts 985,949,440, in which each of 39 blocks has a bias of keys that is always zero.
    assert sum(p.numel() for p in module.parameters()) == 985_949_440 - 39 * 1408
    assert EvaTower().num_vectors == 257
    assert [EvaTower(image_size=size).num_vectors for size in (364, 490)] == [677, 1226]


def started(spec: EvaTower) -> tuple[EvaVision, set[str]]:
    module: Any = torch.nn.ModuleDict({"vision": build_empty(spec)})
    materialise(module, torch.device("cpu"))
    return module["vision"], set(initialise(module, {"vision": spec}, InitialTensors({}, {})).values())


@pytest.mark.parametrize("prefix", ["", "vision_model."], ids=["tower", "whole model"])
def test_weights_of_transformers(tmp_path: Path, prefix: str) -> None:
    model = theirs()
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    write_tensors(tmp_path / "model.safetensors", {**state, **({"query_tokens": torch.ones(1)} if prefix else {})})
    net, sources = started(EvaTower(**{**TINY, "weights": str(tmp_path)}))
    assert sources == {"pretrained"}
    seen = images()
    expected = model.encoder(inputs_embeds=model.embeddings(pixels(seen, net))).last_hidden_state
    assert_close(net(seen), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layout", ["timm", "lavis", "lavis, whole model"])
def test_weights_of_timm_and_lavis(tmp_path: Path, layout: str) -> None:
    """With a block more than is used, and what stands behind the blocks."""
    deeper = tower(depth=3)
    state = dict(EVA_KEYS.to_theirs(deeper.state_dict().items())) | {"norm.weight": torch.ones(16)}
    place = tmp_path / "eva_vit_g.pth"
    if layout == "timm":
        place = tmp_path / "model.safetensors"
        write_tensors(place, {**state, "head.bias": torch.ones(16)})
    elif layout == "lavis":
        torch.save(state, place)
    else:
        whole = {f"visual_encoder.{name}": tensor for name, tensor in state.items()}
        torch.save({"model": {**whole, "ln_vision.weight": torch.ones(16)}}, place)
    net, sources = started(EvaTower(**{**TINY, "weights": str(place)}))
    assert sources == {"pretrained"}
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, deeper.state_dict()[name]), name


def test_positions_are_resized_as_transformers_does(tmp_path: Path) -> None:
    model = theirs()
    model.save_pretrained(tmp_path)
    for size in (20, 8):
        spec = EvaTower(**{**TINY, "weights": str(tmp_path), "image_size": size})
        assert isinstance(spec, ComponentSpec) and isinstance(spec, ResizableComponent)
        net, sources = started(spec)
        assert sources == {"pretrained", "pretrained, resized"}
        seen = images(size=size)
        embedded = model.embeddings(pixels(seen, net), interpolate_pos_encoding=True)
        expected = model.encoder(inputs_embeds=embedded).last_hidden_state
        assert_close(net(seen), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_frozen_tower_of_16_bits_adds_up_in_32(dtype: str) -> None:
    exact = tower()
    small = EvaTower(**TINY, dtype=dtype).build()
    small.load_state_dict(exact.state_dict())
    halved = {name for name, p in small.named_parameters() if p.dtype == getattr(torch, dtype)}
    others = ("cls_token", "pos_embed", "attn.qv_bias")
    assert halved == {n for n, _ in exact.named_parameters() if "norm" not in n and not n.endswith(others)}
    seen = images()
    with pytest.raises(ValueError, match=rf"vision\.dtype: found torch\.{dtype} in a tower that is trained"):
        small(seen)
    small.requires_grad_(False)
    found = small(seen)
    assert found.dtype == torch.float32
    assert_close(found, exact(seen), atol=0.1, rtol=0)
    assert not torch.equal(found, exact(seen))


def test_frozen_without_autograd_and_trained_with() -> None:
    net = tower()
    assert net(images()).requires_grad
    assert not net.requires_grad_(False)(images()).requires_grad


def test_wrong_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"vision\.image_size: found 225, expected a multiple of the patch's 14"):
        EvaTower(image_size=225)
    with pytest.raises(ValueError, match=r"vision\.heads: found 15, expected a divisor of the width 1408"):
        EvaTower(heads=15)
    with pytest.raises(ValueError, match=r"vision\.dtype: found 'half', expected float16, bfloat16 or null"):
        EvaTower(dtype="half")
    write_tensors(tmp_path / "model.safetensors", {"conv1.weight": torch.ones(1)})
    spec = EvaTower(weights=str(tmp_path))
    with pytest.raises(ValueError, match=r"found no image encoder, expected one of the tensors cls_token, embeddings"):
        list(spec.pretrained() or ())
    with pytest.raises(ValueError, match=r"vision\.weights: weights 'no/such' are no folder and cannot be downl"):
        list(replace(spec, weights="no/such").pretrained() or ())
    assert replace(spec, weights=None).pretrained() is None
