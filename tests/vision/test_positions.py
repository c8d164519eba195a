from __future__ import annotations

import pytest
import torch
from open_clip.model import resize_pos_embed
from torch import nn
from torch.testing import assert_close

from lightning_mllm.component import ResizableComponent
from lightning_mllm.vision.clip import OpenClipModel
from lightning_mllm.vision.positions import resized
from lightning_mllm.vision.tower import OpenClipTower

VISUAL = "visual.positional_embedding"


@pytest.mark.parametrize(("old", "new"), [(2, 6), (6, 2), (1, 3), (4, 4)])
def test_as_open_clip_does_when_it_loads_a_checkpoint(old: int, new: int) -> None:
    positions = torch.randn(1 + old * old, 8)

    class Visual(nn.Module):
        grid_size = (new, new)

    class Net(nn.Module):
        visual = Visual()

    state = {"visual.positional_embedding": positions.clone()}
    resize_pos_embed(state, Net())
    assert_close(resized(positions, (1 + new * new, 8)), state["visual.positional_embedding"], atol=1e-6, rtol=0)


def test_one_place_becomes_nine_alike_and_the_class_token_stays() -> None:
    positions = torch.randn(2, 8)
    assert_close(resized(positions, (10, 8)), torch.cat([positions[:1], positions[1:].expand(9, 8)]), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("rows", "shape"), [(5, (10, 16)), (5, (9, 8)), (4, (10, 8))], ids=["another width", "no square", "was no square"]
)
def test_another_tensor_is_not_resized(rows: int, shape: tuple[int, int]) -> None:
    assert resized(torch.zeros(rows, 8), shape) is None


CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 5, "vocab_size": 20, "width": 32, "heads": 2, "layers": 2},
}


@pytest.mark.parametrize(
    ("spec", "name"),
    [(OpenClipTower(config=CONFIG), "positional_embedding"), (OpenClipModel(config=CONFIG), VISUAL)],
    ids=["tower", "model"],
)
def test_specs_resize_the_positions_of_images_alone(spec: OpenClipTower | OpenClipModel, name: str) -> None:
    assert isinstance(spec, ResizableComponent)
    assert name in spec.build().state_dict()
    positions = torch.randn(2, 8)
    found = spec.resized(name, positions, (5, 8))
    assert found is not None and found.shape == (5, 8)
    # Those of words have a number of rows, too, that may be one more than a square.
    assert spec.resized("transformer.positional_embedding", positions, (5, 8)) is None
    assert isinstance(spec, OpenClipTower) or spec.resized("positional_embedding", positions, (5, 8)) is None
