from __future__ import annotations

from pathlib import Path

import pytest
import timm.models.eva
import torch
from torch import Tensor

from lightning_mllm.interop.keys.eva import BLIP2_VISION_KEYS, EVA_KEYS
from lightning_mllm.weights.files import TensorFiles
from lightning_mllm.weights.keymap import KeyMap
from tests.vision.evas import theirs, tower


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("keys", [EVA_KEYS, BLIP2_VISION_KEYS], ids=["timm", "transformers"])
def test_there_and_back_is_the_same(keys: KeyMap) -> None:
    state = tower().state_dict()
    there = dict(keys.to_theirs(state.items()))
    assert same(dict(keys.to_ours(there)), state)
    assert {name: load().shape for name, load in ((n, keys.lazily(there)[n]) for n in state)} == {
        name: tensor.shape for name, tensor in state.items()
    }


def test_a_folder_of_transformers_back_and_there_is_the_same(tmp_path: Path) -> None:
    theirs().save_pretrained(tmp_path)
    disk = {name: tensor for name, tensor in TensorFiles(tmp_path).items() if not name.startswith("post_layernorm.")}
    ours = dict(BLIP2_VISION_KEYS.to_ours(disk))
    assert ours.keys() == tower().state_dict().keys()
    assert same(dict(BLIP2_VISION_KEYS.to_theirs(ours.items())), disk)


def test_names_are_timms() -> None:
    other = timm.models.eva.Eva(img_size=12, patch_size=4, embed_dim=16, depth=2, num_heads=2, mlp_ratio=1.5)
    behind = {name for name in other.state_dict() if name.startswith(("fc_norm.", "head."))}
    there = dict(EVA_KEYS.to_theirs(tower().state_dict().items()))
    assert there.keys() == other.state_dict().keys() - behind
    assert {name: tensor.shape for name, tensor in there.items()} == {n: other.state_dict()[n].shape for n in there}
    assert dict(EVA_KEYS.to_ours(other.state_dict())).keys() == tower().state_dict().keys()
