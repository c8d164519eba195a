"""Models in another dtype and on other devices than the run says, and names that lead to none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from lightning_mllm.export.export import hf_folder
from lightning_mllm.inference import Model, load
from tests.interop.test_hf_llava import net

RED = Image.new("RGB", (20, 30), (200, 0, 0))


def test_a_model_is_loaded_in_another_dtype_and_dispatched_by_accelerate(tmp_path: Path) -> None:
    module = net()
    hf_folder(module).write(tmp_path)
    half, spread = load(tmp_path, dtype="bfloat16"), load(str(tmp_path), device_map="auto")
    assert {each.dtype for each in half.module.parameters()} == {torch.bfloat16}
    assert half.answer(RED, "What is it?") != ""
    # Rounded frequencies of rotary embeddings would turn late tokens too far.
    kept, own = dict(half.module.named_buffers()), dict(module.named_buffers())
    assert [name for name in kept if name.endswith("inv_freq")] and kept.keys() == own.keys()
    assert all(torch.equal(kept[name], own[name]) for name in kept)
    assert spread.answer(RED, "What is it?") == Model(module).answer(RED, "What is it?")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"dtype": "int8"}, r"dtype: found 'int8', expected a floating dtype of torch such as 'bfloat16'"),
        ({"device_map": "balanced"}, r"device_map: found 'balanced', expected 'auto' or none"),
    ],
)
def test_what_a_model_cannot_be_loaded_as_is_told(tmp_path: Path, given: dict[str, str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        load(tmp_path, **given)  # pyright: ignore[reportArgumentType]


def test_a_name_that_is_neither_here_nor_on_the_hub_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"nobody/nothing: found no such folder, and no repository of this name"):
        load("nobody/nothing")
    with pytest.raises(ValueError, match=r"runs/no/where: found no finished stage"):
        load("runs/no/where")
