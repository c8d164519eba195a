"""Towers hold what their output needs and nothing else, and a frozen one makes no graph."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from lightning_mllm.architectures.llava import TINY
from lightning_mllm.vision.dino import DinoTower
from lightning_mllm.vision.eva2 import TINY_EVA2
from lightning_mllm.vision.mixture import TINY_MIXTURE

CLIP: Any = TINY["vision"]
(QFORMER,), (_, CONVNEXT, DINO) = TINY_MIXTURE.groups
REGISTERS = DinoTower(
    model="vit_small_patch14_reg4_dinov2",
    weights=None,
    image_size=16,
    config={"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2},
)
TOWERS: dict[str, tuple[Any, int]] = {
    "clip, layer -2 of 3": (CLIP, 2),
    "clip, layer 1": (replace(CLIP, layer=1), 1),
    "clip, all and the norm": (replace(CLIP, layer=-1, cls="keep", norm=True), 3),
    "eva": (QFORMER.vision, 1),  # type: ignore[attr-defined]
    "eva2": (TINY_EVA2, 2),
    "dino": (DINO, 2),
    "dino with registers": (REGISTERS, 2),
    "convnext": (CONVNEXT, 9),
    "q-former": (QFORMER, 4),
    "mixed": (TINY_MIXTURE, 4 + 2 + 9 + 2),
}


@pytest.mark.parametrize("name", TOWERS)
def test_all_that_is_built_is_used_and_what_is_frozen_makes_no_graph(name: str) -> None:
    spec, count = TOWERS[name]
    tower, ran = spec.build(), Counter()
    for number, block in enumerate(spec.blocks(tower)):
        block.register_forward_hook(partial(lambda number, *_: ran.update([number]), number))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    size = (2, 3, spec.image_size, spec.image_size)
    pixels = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
    found = outputs(tower(pixels))
    torch.stack([(each * torch.randn(each.shape, generator=generator)).sum() for each in found]).sum().backward()
    assert ran == dict.fromkeys(range(count), 1)
    unused = [key for key, parameter in tower.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert not unused
    tower.requires_grad_(False)
    assert not any(each.requires_grad for each in outputs(tower(pixels)))


def outputs(found: Any) -> tuple[torch.Tensor, ...]:
    return found if isinstance(found, tuple) else (found,)
