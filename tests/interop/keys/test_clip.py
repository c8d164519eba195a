from __future__ import annotations

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from lightning_mllm.interop.keys.clip import CLIP_KEYS
from lightning_mllm.vision.tower import OpenClipTower
from tests.vision.models import CONFIG


def theirs(layers: int) -> dict[str, torch.Tensor]:
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    state = CLIPVisionModel(config).state_dict()
    return {name.removeprefix("vision_model."): tensor for name, tensor in state.items()}


def test_there_and_back_is_the_same() -> None:
    state = OpenClipTower(weights=None, layer=-1, config=CONFIG).build().state_dict()
    other = dict(CLIP_KEYS.to_theirs(state.items()))
    known = theirs(4)
    assert set(known) - set(other) == {"post_layernorm.weight", "post_layernorm.bias"}
    assert {name: tensor.shape for name, tensor in other.items()} == {name: known[name].shape for name in other}
    back = dict(CLIP_KEYS.to_ours(other))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize(("layer", "used"), [(-1, 4), (-2, 3), (2, 2)])
def test_blocks_behind_the_layer_are_left_out(layer: int, used: int) -> None:
    config = {"vision_feature_layer": layer, "vision_config": {"num_hidden_layers": 4}}
    names = dict(CLIP_KEYS.to_ours(theirs(4), config))
    assert {name.split(".")[2] for name in names if "resblocks" in name} == {str(i) for i in range(used)}
    assert set(names) == set(OpenClipTower(weights=None, layer=layer, config=CONFIG).build().state_dict())


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'patch_embed\.bias' has no name here"):
        dict(CLIP_KEYS.to_ours({"patch_embed.bias": torch.ones(1)}))
