"""Features come in the shape of the tower's output."""

from __future__ import annotations

import torch

from lightning_mllm.training.initialise import build_empty
from lightning_mllm.vision.cached import CachedTower


def test_groups_are_cut_where_they_were_joined() -> None:
    groups = [torch.arange(12.0).view(2, 3, 2), torch.arange(16.0).view(2, 2, 4)]
    images = torch.cat([each.flatten(1) for each in groups], 1).to(torch.bfloat16)
    shapes = ((3, 2), (2, 4))
    mixed = CachedTower(groups=shapes, mixed=True, dtype=torch.float32)
    found = build_empty(mixed)(images)
    assert isinstance(found, tuple) and all(map(torch.equal, found, groups))
    (one,) = build_empty(CachedTower(groups=shapes[:1], mixed=True, dtype=torch.float32))(images[:, :6])
    alone = CachedTower(groups=shapes[:1], mixed=False, dtype=torch.bfloat16)
    assert torch.equal(one, groups[0]) and torch.equal(build_empty(alone)(images[:, :6]), groups[0].bfloat16())
    assert list(mixed.pretrained()) == mixed.blocks(build_empty(mixed)) == []
