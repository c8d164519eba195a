from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from torch import Tensor, nn
from torch.testing import assert_close

from lightning_mllm.component import ComponentSpec
from lightning_mllm.vision.convnext import ConvNextTower
from lightning_mllm.weights.files import write_tensors
from tests.vision.towers import CONVNEXT, TEXT, convnext, images, pixels, shaken


def as_released(clip: Any, seen: Tensor) -> Tensor:
    """SPHINX's code (`llama_ens.py`), line by line, up to the concatenation."""
    trunk = clip.visual.trunk
    trunk.head.global_pool, trunk.head.flatten = nn.Identity(), nn.Identity()
    x = trunk(pixels(seen, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
    x = x.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)
    x = x.flatten(-2).permute(0, 2, 1)
    return torch.cat([x.mean(dim=1, keepdim=True), x], dim=1)


def test_as_released_from_open_clips_file(tmp_path: Path) -> None:
    clip = shaken(open_clip.CLIP(CONVNEXT["embed_dim"], CONVNEXT["vision_cfg"], CONVNEXT["text_cfg"])).eval()
    write_tensors(tmp_path / "clip.safetensors", clip.state_dict())
    spec = convnext(weights=str(tmp_path / "clip.safetensors"))
    assert isinstance(spec, ComponentSpec)
    tower = spec.build()
    tower.load_state_dict(dict(spec.pretrained() or ()), strict=True)
    seen = images(64)
    with torch.no_grad():
        found, expected = tower.eval()(seen), as_released(clip, seen)
    assert found.shape == (2, 17, 64) == (2, spec.num_vectors, spec.width)
    assert_close(found, expected, atol=1e-5, rtol=0)
    # Cells lie where they are in the image: a 2 x 2 map, each cell a square of four vectors.
    assert_close(found[:, 1:].unflatten(1, (4, 4))[:, 0::2, 0::2], found[:, 1:].unflatten(1, (4, 4))[:, 1::2, 1::2])


def test_other_grids_and_no_class_token() -> None:
    tower = shaken(convnext(grid=2, cls="drop").build())
    wide = convnext(grid=6).build()
    wide.load_state_dict(tower.state_dict())
    seen = images(64)
    cells, found = tower(seen), wide(seen)
    assert cells.shape == (2, 4, 64) and found.shape == (2, 37, 64)
    assert_close(found[:, 0], cells.mean(1))
    assert_close(found[:, 1:].unflatten(1, (6, 6))[:, ::3, ::3].flatten(1, 2), cells)


def test_published_sizes() -> None:
    spec = ConvNextTower()
    assert (spec.image_size, spec.width, spec.num_vectors) == (256, 3072, 257)
    assert (spec.mean, spec.std) == (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)


def test_a_tower_whose_norm_stands_before_the_classifier(tmp_path: Path) -> None:
    config = {"embed_dim": 16, "vision_cfg": {"timm_model_name": "test_convnext3", "image_size": 64}, "text_cfg": TEXT}
    clip = open_clip.CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"]).eval()
    write_tensors(tmp_path / "clip.safetensors", clip.state_dict())
    spec = convnext(weights=str(tmp_path / "clip.safetensors"), config=config)
    tower, seen = spec.build(), images(64)
    tower.load_state_dict(dict(spec.pretrained() or ()), strict=True)
    trunk: Any = clip.visual.trunk
    expected = trunk.head.norm(trunk.forward_features(pixels(seen, spec.mean, spec.std)))
    assert_close(tower(seen)[:, 1:].unflatten(1, (4, 4))[:, ::2, ::2].flatten(1, 2), expected.flatten(2).mT)


def test_every_parameter_learns_and_a_frozen_tower_has_no_autograd() -> None:
    tower = shaken(convnext().build())
    seen = images(64)
    out = tower(seen)
    (out * torch.randn_like(out)).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in tower.parameters())
    frozen = tower.requires_grad_(False)(seen)
    assert not frozen.requires_grad
    # The configuration's drop path would leave blocks out.
    assert_close(tower.train()(seen), frozen)
    assert convnext().pretrained() is None
    assert len(convnext().blocks(tower)) == 1 + 2 + 4 + 2


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"grid": 5}, r"vision\.grid: found 5, expected a multiple of the 2 rows of cells that .* of 64 pixels"),
        ({"config": None, "model": "ViT-L-14"}, "ViT-L-14: found no model of timm, expected a ConvNeXt"),
        ({"config": None, "model": "ViT-B-16-SigLIP"}, "SigLIP: found a VisionTransformer, expected a ConvNeXt"),
    ],
)
def test_towers_that_cannot_be_had(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        convnext(**changes).build()
