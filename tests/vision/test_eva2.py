from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import timm.models.eva
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from lightning_mllm.component import ComponentSpec, ResizableComponent
from lightning_mllm.interop.hf_components import eva_settings
from lightning_mllm.interop.keys.eva2 import COGVLM_VISION_KEYS, EVA2_KEYS
from lightning_mllm.training.initialise import build_empty, initialise, materialise
from lightning_mllm.vision.eva2 import TINY_EVA2, Eva2Tower, Eva2Vision
from lightning_mllm.weights.files import write_tensors
from lightning_mllm.weights.stage_weights import InitialTensors
from tests.vision.eva2s import TINY, cogvlm_forward, tower


def images(count: int = 2, size: int = 12) -> Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)


def pixels(seen: Tensor, ours: Eva2Vision) -> Tensor:
    return (seen.float() / 255 - ours.mean) / ours.std


def timms(ours: Eva2Vision, depth: int = 3) -> Any:
    """timm's tower with the values of `ours` in its first blocks."""
    other: Any = timm.models.eva.Eva(
        img_size=12, patch_size=4, embed_dim=16, depth=depth, num_heads=2, mlp_ratio=1.5, use_post_norm=True,
        global_pool="token", num_classes=0,
    )  # fmt: skip
    state = dict(EVA2_KEYS.to_theirs(ours.state_dict().items()))
    assert other.load_state_dict(state, strict=False).unexpected_keys == []
    return other


def test_parity_with_timm_but_for_its_last_block() -> None:
    ours = tower()
    other, seen = timms(ours), images()
    x = other.patch_embed(pixels(seen, ours))
    x = torch.cat([other.cls_token.expand(2, -1, -1), x], 1) + other.pos_embed
    for block in other.blocks[:2]:
        x = block(x)
    expected, found = x[:, 1:], ours(seen)
    assert found.shape == (2, 9, 16)
    assert_close(found, expected, atol=1e-5, rtol=0)
    weight = torch.randn_like(expected)
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    own = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    assert own.keys() == dict(ours.named_parameters()).keys()
    gradients = {name: p.grad for name, p in other.named_parameters() if p.grad is not None}
    for name, gradient in EVA2_KEYS.to_ours(gradients):
        assert_close(own.pop(name), gradient, atol=1e-4, rtol=1e-5, msg=name)
    assert own == {}


def test_parity_with_cogvlm() -> None:
    ours, seen = tower(), images()
    state = dict(COGVLM_VISION_KEYS.to_theirs(ours.state_dict().items()))
    assert_close(ours(seen), cogvlm_forward(state, pixels(seen, ours)), atol=1e-5, rtol=0)


def test_published_size() -> None:
    with torch.device("meta"):
        module = Eva2Tower().build()
        smaller = Eva2Tower(image_size=224).build()
        whole: Any = timm.create_model("eva02_enormous_patch14_clip_224", num_classes=0)
    width, inner, blocks, positions = 1792, 15360, 63, 1 + 35 * 35
    attention = (width * 3 * width + 3 * width) + (width * width + width)
    mlp = (width * inner + inner) + (inner * width + width)
    norms = 2 * 2 * width
    embeddings = width + positions * width + (3 * 14 * 14 * width + width)
    count = sum(p.numel() for p in module.parameters())
    assert count == blocks * (attention + mlp + norms) + embeddings == 4_282_641_664
    # timm has a block more, a norm behind it, and no bias of keys.
    theirs = sum(p.numel() for p in whole.parameters())
    last = attention + mlp + norms - width
    assert sum(p.numel() for p in smaller.parameters()) == theirs - last - 2 * width + blocks * width
    assert Eva2Tower().num_vectors == 1225 and Eva2Tower(image_size=224).num_vectors == 256


def started(spec: Eva2Tower) -> tuple[Eva2Vision, set[str]]:
    module: Any = torch.nn.ModuleDict({"vision": build_empty(spec)})
    materialise(module, torch.device("cpu"))
    return module["vision"], set(initialise(module, {"vision": spec}, InitialTensors({}, {})).values())


def same(net: Eva2Vision, other: Eva2Vision) -> None:
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


@pytest.mark.parametrize("layout", ["tower", "all that is vision", "whole model"])
def test_weights_of_cogvlm(tmp_path: Path, layout: str) -> None:
    other = tower()
    state = dict(COGVLM_VISION_KEYS.to_theirs(other.state_dict().items()))
    if layout != "tower":
        state |= {"boi": torch.ones(1, 1, 4), "eoi": torch.ones(1, 1, 4)}
        state |= {"linear_proj.norm1.weight": torch.ones(4), "linear_proj.gate_proj.weight": torch.ones(4, 4)}
    if layout == "whole model":
        state = {f"model.vision.{name}": tensor for name, tensor in state.items()}
        state |= {"lm_head.weight": torch.ones(4, 4), "model.layers.0.input_layernorm.weight": torch.ones(4)}
    # In several files, as a model of 17 billion parameters is.
    assert len(write_tensors(tmp_path / "model.safetensors", state, shard_bytes=8000)) > 1
    net, sources = started(Eva2Tower(**{**TINY, "weights": str(tmp_path)}))
    assert sources == {"pretrained"}
    same(net, other)


def test_weights_of_timm(tmp_path: Path) -> None:
    """With a block more than is used, and what stands behind the blocks."""
    other = timms(tower(), depth=3)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    write_tensors(tmp_path / "model.safetensors", {**other.state_dict(), "head.bias": torch.ones(16)})
    net, sources = started(Eva2Tower(**{**TINY, "weights": str(tmp_path)}))
    assert sources == {"pretrained"}
    seen = images()
    x = other.patch_embed(pixels(seen, net))
    x = torch.cat([other.cls_token.expand(2, -1, -1), x], 1) + other.pos_embed
    assert_close(net(seen), other.blocks[1](other.blocks[0](x))[:, 1:], atol=1e-5, rtol=0)
    biases = [tensor for name, tensor in net.state_dict().items() if name.endswith("qkv.bias")]
    assert len(biases) == 2 and all(bias.any() and not bias[16:32].any() for bias in biases)


def test_positions_are_resized_and_the_class_tokens_kept(tmp_path: Path) -> None:
    other = tower()
    state = dict(COGVLM_VISION_KEYS.to_theirs(other.state_dict().items()))
    write_tensors(tmp_path / "model.safetensors", state)
    for size in (20, 8):
        spec = Eva2Tower(**{**TINY, "weights": str(tmp_path), "image_size": size})
        assert isinstance(spec, ComponentSpec) and isinstance(spec, ResizableComponent)
        net, sources = started(spec)
        assert sources == {"pretrained", "pretrained, resized"}
        grid = other.pos_embed[:, 1:].view(1, 3, 3, 16).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, (size // 4, size // 4), mode="bicubic", align_corners=False)
        assert_close(net.pos_embed[:, 1:], grid.flatten(2).mT, atol=1e-6, rtol=0)
        assert torch.equal(net.pos_embed[:, 0], other.pos_embed[:, 0])
        assert net(images(size=size)).shape == (2, (size // 4) ** 2, 16)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_frozen_tower_of_16_bits_adds_up_in_32(dtype: str) -> None:
    exact = tower()
    small = Eva2Tower(**TINY, dtype=dtype).build()
    small.load_state_dict(exact.state_dict())
    halved = {name for name, p in small.named_parameters() if p.dtype == getattr(torch, dtype)}
    assert halved == {n for n, _ in exact.named_parameters() if "norm" not in n and n not in ("cls_token", "pos_embed")}
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
    net.requires_grad_(False)
    assert not net(images()).requires_grad
    # A single trained tensor is enough.
    net.blocks[1].get_submodule("norm2").requires_grad_(True)
    assert net(images()).requires_grad


def test_the_tiny_tower() -> None:
    net = TINY_EVA2.build()
    assert net(images(size=16)).shape == (2, TINY_EVA2.num_vectors, TINY_EVA2.width) == (2, 4, 32)
    assert TINY_EVA2.pretrained() is None
    assert TINY_EVA2.blocks(net) == list(net.blocks) and len(net.blocks) == 2


def test_wrong_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"vision\.image_size: found 450, expected a multiple of the patch's 14"):
        Eva2Tower(image_size=450)
    with pytest.raises(ValueError, match=r"vision\.heads: found 15, expected a divisor of the width 1792"):
        Eva2Tower(heads=15)
    write_tensors(tmp_path / "model.safetensors", {"conv1.weight": torch.ones(1)})
    spec = Eva2Tower(weights=str(tmp_path))
    expected = r"tensors cls_token, model\.vision\.patch_embedding\.cls_embedding, patch_embedding\.cls_embedding"
    with pytest.raises(ValueError, match=f"found no image encoder, expected one of the {expected}"):
        list(spec.pretrained() or ())
    with pytest.raises(ValueError, match=r"vision\.weights: weights 'no/such' are no folder and cannot be downl"):
        list(replace(spec, weights="no/such").pretrained() or ())
    with pytest.raises(ValueError, match="vision: found a Eva2Vision, expected an EVA tower, all that transformers'"):
        eva_settings(tower(), 12)
