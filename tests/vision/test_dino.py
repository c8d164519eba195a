from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close
from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from lightning_mllm.component import ComponentSpec, ResizableComponent
from lightning_mllm.vision.dino import DinoTower
from lightning_mllm.weights.files import write_tensors
from lightning_mllm.weights.keymap import SPLIT_3, KeyMap
from tests.vision.towers import GIANT, REGISTERS, dino, images, pixels, shaken

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HF: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 12,
    "patch_size": 4,
}
THERE, HERE = "encoder.layer.{n}", "blocks.{n}"
AUTHORS_FROM_HF = KeyMap(
    [
        ("patch_embed.proj.{...}", "embeddings.patch_embeddings.projection.{...}"),
        ("pos_embed", "embeddings.position_embeddings"),
        *((name, f"embeddings.{name}") for name in ("cls_token", "mask_token", "register_tokens")),
        ("norm.{...}", "layernorm.{...}"),
        *(
            (f"{HERE}.attn.qkv.{kind}", tuple(f"{THERE}.attention.{each}_proj.{kind}" for each in "qkv"), SPLIT_3)
            for kind in ("weight", "bias")
        ),
        (f"{HERE}.attn.proj.{{...}}", f"{THERE}.attention.o_proj.{{...}}"),
        *((f"{HERE}.ls{i}.gamma", f"{THERE}.layer_scale{i}.lambda1") for i in (1, 2)),
        *((f"{HERE}.norm{i}.{{...}}", f"{THERE}.norm{i}.{{...}}") for i in (1, 2)),
        *(
            (f"{HERE}.mlp.w12.{kind}", tuple(f"{THERE}.mlp.{each}_proj.{kind}" for each in ("gate", "up")), SPLIT_3)
            for kind in ("weight", "bias")
        ),
        (f"{HERE}.mlp.w3.{{...}}", f"{THERE}.mlp.down_proj.{{...}}"),
        (f"{HERE}.mlp.{{...}}", f"{THERE}.mlp.{{...}}"),
    ]
)
"""The names of the authors' files <- those of transformers' models in memory."""


def filled(spec: DinoTower) -> Any:
    assert isinstance(spec, ComponentSpec) and isinstance(spec, ResizableComponent)
    tower = spec.build()
    state = {}
    for name, tensor in spec.pretrained() or ():
        shape = tower.state_dict()[name].shape
        fitting = tensor if tensor.shape == shape else spec.resized(name, tensor, shape)
        assert fitting is not None, name
        state[name] = fitting
    tower.load_state_dict(state, strict=True)
    return tower


@pytest.mark.parametrize("model", [GIANT, REGISTERS])
def test_the_authors_files_give_what_transformers_gives(tmp_path: Path, model: str) -> None:
    theirs: Any = (
        Dinov2Model(Dinov2Config(**HF, use_swiglu_ffn=True))
        if model == GIANT
        else Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**HF, num_register_tokens=4))
    )
    shaken(theirs).eval()
    state = dict(AUTHORS_FROM_HF.to_ours(theirs.state_dict()))
    torch.save(state, tmp_path / "dinov2_pretrain.pth")
    spec = dino(model=model, weights=str(tmp_path / "dinov2_pretrain.pth"))
    tower, seen = filled(spec), images(12)
    assert (spec.num_vectors, spec.width, spec.mean, spec.std) == (10, 24, *IMAGENET)
    out = theirs(pixels(seen, *IMAGENET)).last_hidden_state
    expected = torch.cat([out[:, :1], out[:, -9:]], 1)
    assert_close(tower(seen), expected, atol=1e-5, rtol=1e-5)
    tower.keep_cls = False
    assert_close(tower(seen), expected[:, 1:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model", [GIANT, REGISTERS])
def test_timms_files_give_what_timm_gives(tmp_path: Path, model: str) -> None:
    config = dino().config
    theirs: Any = shaken(timm.create_model(model, num_classes=0, img_size=12, **(config or {})))
    write_tensors(tmp_path / "model.safetensors", theirs.state_dict())
    spec = dino(model=model, weights=str(tmp_path))
    seen = images(12)
    out = theirs.forward_features(pixels(seen, *IMAGENET))
    assert_close(filled(spec)(seen), torch.cat([out[:, :1], out[:, -9:]], 1), atol=1e-6, rtol=0)


def authors_positions(pos_embed: Tensor, rows: int) -> Tensor:
    """`interpolate_pos_encoding` of DINOv2's released code at the hub's settings, for a square."""
    old = int((pos_embed.shape[1] - 1) ** 0.5)
    scale = float(rows + 0.1) / old
    grid = pos_embed[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic", antialias=False)
    assert grid.shape[-1] == rows
    return torch.cat([pos_embed[:, :1], grid.permute(0, 2, 3, 1).reshape(1, rows * rows, -1)], 1)


def test_positions_of_518_pixels_as_the_authors_resize_them() -> None:
    positions = torch.randn(1, 1 + 37 * 37, 24)
    found = dino(model=GIANT).resized("pos_embed", positions, (1, 257, 24))
    assert_close(found, authors_positions(positions, 16), atol=1e-6, rtol=0)
    # With registers the hub's models filter and add nothing.
    grid = F.interpolate(
        positions[0, 1:].view(1, 37, 37, 24).permute(0, 3, 1, 2), size=(16, 16), mode="bicubic", antialias=True
    )
    found = dino(model=REGISTERS).resized("pos_embed", positions[:, 1:], (1, 256, 24))
    assert_close(found, grid.permute(0, 2, 3, 1).flatten(1, 2), atol=1e-6, rtol=0)
    assert dino().resized("cls_token", positions[:, :1], (1, 1, 12)) is None


@pytest.mark.parametrize("model", [GIANT, REGISTERS])
def test_every_parameter_learns_and_a_frozen_tower_has_no_autograd(model: str) -> None:
    spec = dino(model=model)
    tower, seen = shaken(spec.build()), images(12)
    out = tower(seen)
    (out * torch.randn_like(out)).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in tower.parameters())
    assert not tower.requires_grad_(False)(seen).requires_grad
    assert len(spec.blocks(tower)) == 2 and spec.pretrained() is None


def test_published_sizes() -> None:
    spec = DinoTower()
    assert (spec.image_size, spec.width, spec.num_vectors) == (224, 1536, 257)


def test_another_model_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"vision\.model: found 'vit_giant_patch14_dino', .* 'vit_giant_patch14_dinov2'"
    ):
        dino(model="vit_giant_patch14_dino").build()
