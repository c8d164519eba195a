from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch

from lightning_mllm.component import ComponentSpec
from lightning_mllm.vision.clip import OpenClipModel
from tests.vision.models import CONFIG, write_folder


def test_a_folder_gives_the_model_that_open_clip_reads_from_it(tmp_path: Path) -> None:
    write_folder(tmp_path)
    spec = OpenClipModel(model=str(tmp_path), weights="")
    assert isinstance(spec, ComponentSpec)
    ours = spec.build().eval()
    ours.load_state_dict(dict(spec.pretrained() or ()), strict=True)
    theirs = open_clip.create_model(f"local-dir:{tmp_path}").eval()
    images, text = torch.rand(2, 3, 16, 16), torch.randint(1, 30, (2, 8))
    with torch.no_grad():
        for mine, other in zip(ours(images, text), theirs(images, text), strict=True):
            assert torch.equal(mine.reshape(-1), other.reshape(-1))
    assert (spec.image_size, spec.context_length, spec.vocab) == (16, 8, 32)
    assert len(spec.blocks(ours)) == 5


def test_every_parameter_has_a_dimension() -> None:
    assert all(p.ndim for p in OpenClipModel(config=CONFIG).build().parameters())


def test_text_towers_of_transformers_are_refused() -> None:
    with pytest.raises(ValueError, match="text tower of transformers"):
        OpenClipModel(model="roberta-ViT-B-32").build()
