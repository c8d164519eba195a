from __future__ import annotations

import pytest
import torch
from open_clip.model import resize_pos_embed
from torch import nn
from torch.testing import assert_close

from lightning_mllm.vision.positions import is_grid, resize_positions


@pytest.mark.parametrize(("old", "new"), [(2, 6), (6, 2), (1, 3), (4, 4)])
def test_as_open_clip_does_when_it_loads_a_checkpoint(old: int, new: int) -> None:
    positions = torch.randn(1 + old * old, 8)

    class Visual(nn.Module):
        grid_size = (new, new)

    class Net(nn.Module):
        visual = Visual()

    state = {"visual.positional_embedding": positions.clone()}
    resize_pos_embed(state, Net())
    assert_close(resize_positions(positions, 1 + new * new), state["visual.positional_embedding"], atol=1e-6, rtol=0)


def test_one_place_becomes_nine_alike_and_the_class_token_stays() -> None:
    positions = torch.randn(2, 8)
    resized = resize_positions(positions, 10)
    assert_close(resized, torch.cat([positions[:1], positions[1:].expand(9, 8)]), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("name", "old", "new", "grid"),
    [
        ("clip.visual.positional_embedding", (2, 8), (10, 8), True),
        ("vision.positional_embedding", (5, 8), (10, 8), True),
        ("clip.positional_embedding", (5, 8), (10, 8), False),
        ("vision.positional_embedding", (5, 8), (10, 16), False),
        ("vision.positional_embedding", (5, 8), (9, 8), False),
        ("vision.conv1.weight", (5, 8), (10, 8), False),
    ],
)
def test_only_the_positions_of_an_image_tower_are_resized(name: str, old: tuple, new: tuple, grid: bool) -> None:
    assert is_grid(name, torch.zeros(old), torch.zeros(new)) is grid
