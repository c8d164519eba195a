from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from jsonargparse import ArgumentParser
from torch import nn
from torch.testing import assert_close

from lightning_mllm.component import ComponentSpec, PartlyFresh, ResizableComponent
from lightning_mllm.training.initialise import build_empty, initialise, materialise
from lightning_mllm.vision.convnext import ConvNextTower
from lightning_mllm.vision.dino import DinoTower
from lightning_mllm.vision.mixture import TINY_MIXTURE, MixedTower, Tower, at_size
from lightning_mllm.vision.qformer_tower import QFormerTower
from lightning_mllm.vision.tower import TINY_TOWER, OpenClipTower
from lightning_mllm.weights.files import write_tensors
from lightning_mllm.weights.stage_weights import InitialTensors
from tests.vision.models import write_folder
from tests.vision.towers import convnext, dino, images, shaken


def test_features_are_those_of_the_towers_run_by_hand() -> None:
    mixed, seen = shaken(TINY_MIXTURE.build()).eval(), images(16, count=3)
    found = mixed(seen)
    (qformer,), (clip, conv, own) = mixed.groups
    # Nearest: pixel floor(i * 16 / 32) of each axis.
    doubled = seen.repeat_interleave(2, -1).repeat_interleave(2, -2)
    by_hand = qformer(seen), torch.cat([clip(seen), conv(doubled), own(seen)], dim=2)
    assert [each.shape for each in found] == [(3, 4, 32), (3, 5, 112)]
    for ours, expected in zip(found, by_hand, strict=True):
        assert_close(ours, expected, atol=1e-6, rtol=0)
    assert (TINY_MIXTURE.vectors, TINY_MIXTURE.widths) == ((4, 5), (32, 112))
    assert (TINY_MIXTURE.num_vectors, TINY_MIXTURE.image_size) == (9, 16)


@pytest.mark.parametrize("how", ["nearest", "bilinear", "bicubic"])
def test_every_tower_sees_its_own_size(how: Any) -> None:
    seen = images(7)
    found = at_size(seen, 8, how)
    # As the released code does it on normalised pixels of 16 bits, which nearest only copies.
    released = F.interpolate(seen.half(), size=(8, 8)).byte()
    assert found.shape == (2, 3, 8, 8) and found.dtype == torch.uint8
    assert torch.equal(found, released) == (how == "nearest")
    flat = torch.full((1, 3, 7, 7), 201, dtype=torch.uint8)
    assert at_size(flat, 4, how).eq(201).all() and at_size(seen, 7, how) is seen


def test_from_a_list_in_yaml() -> None:
    module = "lightning_mllm.vision"
    towers = [
        {"class_path": f"{module}.convnext.ConvNextTower", "init_args": {"grid": 8}},
        {"class_path": f"{module}.dino.DinoTower", "init_args": {"model": "vit_small_patch14_dinov2"}},
    ]
    parser = ArgumentParser()
    parser.add_subclass_arguments(Holder, "model")
    given = {"groups": [towers, [{"class_path": f"{module}.eva.EvaTower"}]], "size": 224}
    whole = {"class_path": f"{__name__}.Holder", "init_args": {"vision": given}}
    found = parser.instantiate(parser.parse_object({"model": whole})).model.vision
    assert isinstance(found, MixedTower) and all(isinstance(t, Tower) for group in found.groups for t in group)
    assert [[type(t).__name__ for t in group] for group in found.groups] == [
        ["ConvNextTower", "DinoTower"],
        ["EvaTower"],
    ]


class Holder:
    def __init__(self, vision: MixedTower) -> None:
        self.vision = vision


def started(spec: MixedTower) -> tuple[nn.Module, dict[str, str]]:
    assert isinstance(spec, ComponentSpec) and isinstance(spec, ResizableComponent) and isinstance(spec, PartlyFresh)
    whole: Any = nn.ModuleDict({"vision": build_empty(spec)})
    assert all(p.is_meta for p in whole.parameters())
    materialise(whole, torch.device("cpu"))
    return whole["vision"].eval(), initialise(whole, {"vision": spec}, InitialTensors({}, {}))


def test_built_without_memory_and_filled_each_from_its_own_source(tmp_path: Path) -> None:
    """One from open_clip's folder, one whose positions are resized, one fresh."""
    clip = write_folder(tmp_path)
    small = shaken(dino(model="vit_small_patch14_dinov2").build())
    write_tensors(tmp_path / "dino.safetensors", small.state_dict())
    spec = MixedTower(
        groups=[
            [
                OpenClipTower(model=str(tmp_path), layer=-1, cls="keep", norm=True),
                dino(model="vit_small_patch14_dinov2", image_size=8, weights=str(tmp_path / "dino.safetensors")),
            ],
            [convnext()],
        ],
        size=16,
    )
    net, sources = started(spec)
    assert {name.split(".", 4)[4]: source for name, source in sources.items() if ".pos" in name} == {
        "positional_embedding": "pretrained",
        "pos_embed": "pretrained, resized",
    }
    assert {source for name, source in sources.items() if name.startswith("vision.groups.1.")} == {"fresh"}
    assert {source for name, source in sources.items() if name.startswith("vision.groups.0.0")} == {"pretrained"}
    assert torch.equal(net.get_parameter("groups.0.0.ln_post.weight"), clip.get_parameter("visual.ln_post.weight"))
    assert [out.shape for out in net(images(16))] == [(2, 5, 56), (2, 17, 64)]
    assert not any(name.startswith("groups.0") for name in spec.fresh)


def test_published_sizes() -> None:
    """CLIP, ConvNeXt and DINOv2 as open_clip and the authors count them, without projections and mask token."""
    spec = MixedTower(
        groups=[
            [QFormerTower()],
            [
                OpenClipTower(model="ViT-L-14-quickgelu", weights="openai", layer=-1, cls="keep", norm=True),
                ConvNextTower(),
                DinoTower(),
            ],
        ],
        size=224,
    )
    assert (spec.vectors, spec.widths, spec.num_vectors) == ((32, 257), (768, 5632), 289)
    with torch.device("meta"):
        net: Any = spec.build()
    counts = [[sum(p.numel() for p in tower.parameters()) for tower in group] for group in net.groups]
    clip, conv, own = 303_966_208 - 1024 * 768, 846_543_744 - 3072 * 1024, 1_136_480_768 - 1536 * (1 + 1370 - 257)
    eva = 985_949_440 - 39 * 1408 + 2 * 1408
    assert counts == [[eva + 105_137_664 + 32 * 768], [clip, conv, own]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frozen_and_in_16_bits_by_autocast(dtype: torch.dtype) -> None:
    mixed, seen = shaken(TINY_MIXTURE.build()).eval().requires_grad_(False), images(16)
    exact = mixed(seen)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        found = mixed(seen)
    for ours, expected in zip(found, exact, strict=True):
        assert not ours.requires_grad and ours.dtype.is_floating_point
        assert_close(ours.float(), expected, atol=0.0 if dtype == torch.float32 else 0.25, rtol=0.05)


def test_all_fresh_is_fresh() -> None:
    net, sources = started(TINY_MIXTURE)
    assert TINY_MIXTURE.pretrained() is None and set(sources.values()) == {"fresh"}
    assert set(sources) == {f"vision.{name}" for name, _ in net.named_parameters()}
    blocks = TINY_MIXTURE.blocks(net)
    assert len(blocks) == 1 + 3 + 2 + (1 + 2 + 4 + 2) + 2
    assert len({id(block) for block in blocks}) == len(blocks)


def test_gradients_reach_every_tower_that_learns_and_no_other() -> None:
    mixed = shaken(TINY_MIXTURE.build()).eval()
    mixed.requires_grad_(False)
    mixed.groups[1][2].requires_grad_(True)
    first, second = mixed(images(16))
    assert not first.requires_grad
    (second * torch.randn_like(second)).sum().backward()
    moved = {name for name, p in mixed.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {name for name, _ in mixed.named_parameters() if name.startswith("groups.1.2.")}


def test_towers_that_do_not_go_together_are_refused() -> None:
    group: list[list[Tower]] = [[TINY_TOWER], [TINY_TOWER, convnext()]]
    spec = MixedTower(groups=group, size=16)
    with pytest.raises(
        ValueError, match=r"found 17 vectors of ConvNextTower \(1\.1\), expected 5 as of OpenClipTower \(1\.0\)"
    ):
        spec.build()
    with pytest.raises(ValueError, match=r"vision\.size: found 0 and towers of \[16, 64\] pixels"):
        _ = replace(spec, size=0).image_size
    assert replace(TINY_MIXTURE, groups=[[TINY_TOWER]], size=0).image_size == 16
    with pytest.raises(ValueError, match=r"vision\.groups: found \[\[\]\], expected groups of at least one tower"):
        MixedTower(groups=[[]])
