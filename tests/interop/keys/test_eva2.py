from __future__ import annotations

import timm.models.eva
import torch
from torch import Tensor

from lightning_mllm.interop.keys.eva2 import COGVLM_VISION_KEYS, EVA2_KEYS
from tests.vision.eva2s import tower


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def published(depth: int = 2) -> dict[str, tuple[int, ...]]:
    """What a CogVLM checkpoint has below `model.vision.` but for the adapter, with the tiny tower's sizes."""
    names: dict[str, tuple[int, ...]] = {
        "patch_embedding.cls_embedding": (1, 16),
        "patch_embedding.position_embedding.weight": (10, 16),
        "patch_embedding.proj.weight": (16, 3, 4, 4),
        "patch_embedding.proj.bias": (16,),
    }
    for n in range(depth):
        layer = f"transformer.layers.{n}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            names |= {f"{layer}.{norm}.weight": (16,), f"{layer}.{norm}.bias": (16,)}
        sizes = {"attention.query_key_value": (48, 16), "attention.dense": (16, 16)}
        sizes |= {"mlp.fc1": (24, 16), "mlp.fc2": (16, 24)}
        for linear, size in sizes.items():
            names |= {f"{layer}.{linear}.weight": size, f"{layer}.{linear}.bias": size[:1]}
    return names


def test_cogvlms_names_and_shapes_and_back_bit_for_bit() -> None:
    state = tower().state_dict()
    there = dict(COGVLM_VISION_KEYS.to_theirs(state.items()))
    assert {name: tuple(tensor.shape) for name, tensor in there.items()} == published()
    assert same(dict(COGVLM_VISION_KEYS.to_ours(there)), state)
    disk = {name: torch.randn(shape) for name, shape in published().items()}
    ours = dict(COGVLM_VISION_KEYS.to_ours(disk))
    assert {name: tensor.shape for name, tensor in ours.items()} == {n: tensor.shape for n, tensor in state.items()}
    assert same(dict(COGVLM_VISION_KEYS.to_theirs(ours.items())), disk)


def test_below_a_prefix() -> None:
    """As an architecture uses it."""
    keys = COGVLM_VISION_KEYS.under("vision.", "model.vision.")
    state = {f"vision.{name}": tensor for name, tensor in tower().state_dict().items()}
    there = dict(keys.to_theirs(state.items()))
    assert set(there) == {f"model.vision.{name}" for name in published()}
    assert same(dict(keys.to_ours(there)), state)


def test_timms_names_and_back() -> None:
    other = timm.models.eva.Eva(
        img_size=12, patch_size=4, embed_dim=16, depth=2, num_heads=2, mlp_ratio=1.5, use_post_norm=True,
        global_pool="token", num_classes=3,
    )  # fmt: skip
    behind = {"norm.weight", "norm.bias", "head.weight", "head.bias"}
    state = tower().state_dict()
    there = dict(EVA2_KEYS.to_theirs(state.items()))
    theirs = {name: tensor for name, tensor in other.state_dict().items() if name not in behind}
    assert {name: tensor.shape for name, tensor in there.items()} == {n: tensor.shape for n, tensor in theirs.items()}
    assert same(dict(EVA2_KEYS.to_theirs(EVA2_KEYS.to_ours(other.state_dict()))), theirs)
    # And from here, all but the bias of keys.
    back = dict(EVA2_KEYS.to_ours(there))
    assert same(
        {name: tensor for name, tensor in back.items() if not name.endswith("qkv.bias")},
        {name: tensor for name, tensor in state.items() if not name.endswith("qkv.bias")},
    )
    for n in range(2):
        found, kept = (each[f"blocks.{n}.attn.qkv.bias"].chunk(3) for each in (back, state))
        assert torch.equal(found[0], kept[0]) and torch.equal(found[2], kept[2]) and not found[1].any()
