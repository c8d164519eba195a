from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close
from transformers import CLIPVisionConfig, CLIPVisionModel

from lightning_mllm.component import ComponentSpec
from lightning_mllm.interop.keys.clip import CLIP_KEYS
from lightning_mllm.vision.encoder import VisionTower
from lightning_mllm.vision.tower import OpenClipTower
from tests.vision.models import CONFIG, MEAN, STD, write_folder

IMAGES = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def filled(spec: OpenClipTower) -> VisionTower:
    tower = spec.build()
    tensors = spec.pretrained()
    assert tensors is not None
    tower.load_state_dict(dict(tensors), strict=True)
    return tower.eval()


@pytest.mark.parametrize("act", ["gelu", "quick_gelu"])
@pytest.mark.parametrize("layer", [-1, -2, -4, 2])
def test_parity_with_transformers(layer: int, act: str) -> None:
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        hidden_act=act,
    )
    theirs = CLIPVisionModel(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    spec = OpenClipTower(weights=None, layer=layer, cls="keep", config={**CONFIG, "quick_gelu": act == "quick_gelu"})
    ours = spec.build().eval()
    used = {"vision_feature_layer": layer, "vision_config": config.to_dict()}
    names = {name.removeprefix("vision_model."): tensor for name, tensor in theirs.state_dict().items()}
    ours.load_state_dict(dict(CLIP_KEYS.to_ours(names, used)), strict=True)
    pixels = (IMAGES / 255 - ours.mean) / ours.std
    with torch.no_grad():
        expected = theirs(pixels, output_hidden_states=True).hidden_states[layer]
    assert_close(ours(IMAGES), expected, atol=1e-5, rtol=0)


def test_the_layer_and_the_class_token_are_those_of_open_clip(tmp_path: Path) -> None:
    net = write_folder(tmp_path)
    spec = OpenClipTower(model=str(tmp_path))
    pixels = (IMAGES / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    with torch.no_grad():
        out = net.visual.forward_intermediates(  # pyright: ignore[reportCallIssue]
            pixels, indices=[2], intermediates_only=True, output_fmt="NLC", output_extra_tokens=True
        )
    patches, cls = out["image_intermediates"][0], out["image_intermediates_prefix"][0]
    assert_close(filled(spec)(IMAGES), patches, atol=1e-6, rtol=0)
    assert_close(filled(replace(spec, cls="keep"))(IMAGES), torch.cat([cls, patches], 1), atol=1e-6, rtol=0)


def test_the_last_norm_is_applied_to_all_vectors_where_it_is_asked_for(tmp_path: Path) -> None:
    """As SPHINX reads CLIP: every block, `ln_post` on the class token and the patches, no projection."""
    net = write_folder(tmp_path)
    with torch.no_grad():
        net.get_parameter("visual.ln_post.weight").normal_()
        net.get_parameter("visual.ln_post.bias").normal_()
    save_file(net.state_dict(), tmp_path / "open_clip_model.safetensors")
    spec = OpenClipTower(model=str(tmp_path), layer=-1, cls="keep", norm=True)
    pixels = (IMAGES / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    with torch.no_grad():
        out = net.visual.forward_intermediates(  # pyright: ignore[reportCallIssue]
            pixels,
            indices=[3],
            normalize_intermediates=True,
            intermediates_only=True,
            output_fmt="NLC",
            output_extra_tokens=True,
        )
    expected = torch.cat([out["image_intermediates_prefix"][0], out["image_intermediates"][0]], 1)
    assert_close(filled(spec)(IMAGES), expected, atol=1e-6, rtol=0)
    assert spec.num_vectors == 5 and "ln_post.weight" not in filled(replace(spec, norm=False)).state_dict()


def test_sizes_are_known_without_building(tmp_path: Path) -> None:
    write_folder(tmp_path)
    spec = OpenClipTower(model=str(tmp_path))
    assert isinstance(spec, ComponentSpec)
    assert (spec.image_size, spec.patch_size, spec.width, spec.num_vectors, spec.depth) == (16, 8, 32, 4, 3)
    assert (spec.mean, spec.std) == (MEAN, STD)
    assert replace(spec, cls="keep").num_vectors == 5
    large = OpenClipTower(model="ViT-L-14-336-quickgelu", weights="openai")
    assert (large.image_size, large.width, large.num_vectors, large.depth) == (336, 1024, 576, 23)
    assert large.mean == (0.48145466, 0.4578275, 0.40821073)
    # A tag may bring statistics of its own.
    assert OpenClipTower(model="ViT-L-14", weights="laion2b_s32b_b82k").mean == (0.5, 0.5, 0.5)


def test_nothing_beyond_the_layer_is_built_or_read(tmp_path: Path) -> None:
    write_folder(tmp_path)
    for layer, depth in ((-1, 4), (-2, 3), (1, 1)):
        spec = OpenClipTower(model=str(tmp_path), layer=layer)
        tower = spec.build()
        assert len(spec.blocks(tower)) == depth
        names = dict(spec.pretrained() or ())
        assert set(names) == set(tower.state_dict())
        assert not any("ln_post" in name or name == "proj" for name in names)


def test_a_frozen_tower_runs_without_autograd_and_alike_in_train_mode(tmp_path: Path) -> None:
    write_folder(tmp_path)
    tower = filled(OpenClipTower(model=str(tmp_path)))
    assert tower(IMAGES).requires_grad
    tower.requires_grad_(False)
    frozen = tower(IMAGES)
    assert not frozen.requires_grad
    # patch_dropout of the configuration would leave half of the vectors out.
    assert_close(tower.train()(IMAGES), frozen)


def test_a_tower_computes_in_its_own_dtype(tmp_path: Path) -> None:
    write_folder(tmp_path)
    tower = filled(OpenClipTower(model=str(tmp_path)))
    exact = tower(IMAGES)
    half = tower.to(torch.bfloat16)(IMAGES)
    assert half.dtype == torch.bfloat16
    assert_close(half.float(), exact, atol=0.15, rtol=0.1)


def test_a_bare_json_is_a_model(tmp_path: Path) -> None:
    file = tmp_path / "tiny.json"
    file.write_text(json.dumps(CONFIG))
    assert OpenClipTower(model=str(file), weights=None).build()(IMAGES).shape == (2, 4, 32)
    assert OpenClipTower(model=str(file), weights=None).pretrained() is None


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, "vision: found neither model nor config"),
        ({"config": CONFIG, "layer": -5}, r"vision\.layer: found -5, expected from -4 to -1"),
        ({"config": CONFIG, "layer": 0}, r"vision\.layer: found 0"),
        (
            {"config": CONFIG, "output_position_scale": -1.0},
            r"vision\.output_position_scale: found -1\.0, expected 0 or more",
        ),
        ({"config": {"embed_dim": 16}}, "found no vision_cfg"),
        ({"model": "convnext_base"}, "found a timm model"),
        ({"model": "coca_ViT-B-32"}, "found attentional pooling"),
        ({"model": "RN50"}, r"vision_cfg\.layers: found \[3, 4, 6, 3\]"),
    ],
)
def test_towers_that_cannot_be_had(settings: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        OpenClipTower(weights=None, **settings).build()


@pytest.mark.parametrize("cls", ["drop", "keep"])
def test_sines_are_added_to_patches_alone_and_as_loud_as_asked_for(cls: Any, tmp_path: Path) -> None:
    write_folder(tmp_path)
    own, quiet, loud = (
        filled(OpenClipTower(model=str(tmp_path), cls=cls, output_position_scale=output_position_scale))(IMAGES)
        for output_position_scale in (0.0, 1.0, 3.0)
    )
    added = quiet - own
    assert_close(loud - own, 3 * added, atol=1e-5, rtol=0)
    # The same for all images, nothing for the class token, and another vector at each place of 2 x 2.
    patches = added[:, -4:]
    assert_close(patches[0], patches[1], atol=1e-6, rtol=0)
    assert (added[:, :-4] == 0).all() and float(patches[0].detach().square().mean()) == pytest.approx(0.5, abs=1e-4)
    assert torch.cdist(patches[0], patches[0]).detach().fill_diagonal_(9).min() > 1
