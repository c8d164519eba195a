"""Files of safetensors written one piece at a time are those that the package itself writes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from lightning_mllm.weights import files
from lightning_mllm.weights.files import read_tensors, write_in_pieces, write_tensors
from lightning_mllm.weights.safetensors_writer import CODES, Layout, size, write_safetensors

EVERY = {str(dtype): (10 * torch.rand(2, 3)).to(dtype) for dtype in CODES}
TENSORS = {**EVERY, "scalar": torch.tensor(7), "none": torch.zeros(0, 4), "turned": torch.randn(3, 5).t()}


def halves(tensors: dict[str, Tensor]) -> Callable[[str], Iterable[Tensor]]:
    """A tensor in two pieces."""
    return lambda name: tensors[name].reshape(-1).tensor_split(2)


def layout_of(tensors: dict[str, Tensor]) -> Layout:
    return {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}


def test_every_dtype_is_read_back_by_the_package(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a.safetensors", layout_of(TENSORS), halves(TENSORS))
    found = load_file(tmp_path / "a.safetensors")
    assert set(found) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_as_large_and_as_aligned_as_the_package_writes_it(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "ours.safetensors", layout_of(TENSORS), halves(TENSORS))
    write_tensors(tmp_path / "theirs.safetensors", TENSORS)
    ours, theirs = ((tmp_path / f"{name}.safetensors").read_bytes() for name in ("ours", "theirs"))
    assert len(ours) == len(theirs) and ours[:8] == theirs[:8]
    start = 8 + int.from_bytes(ours[:8], "little")
    header = json.loads(ours[8:start])
    for name, (dtype, _) in layout_of(TENSORS).items():
        assert (start + header[name]["data_offsets"][0]) % dtype.itemsize == 0, name


def test_shards_with_an_index(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(6), "b": torch.ones(3, dtype=torch.bfloat16), "c": torch.tensor(7)}
    assert [size(each) for each in layout_of(tensors).values()] == [24, 6, 8]
    path = tmp_path / "model.safetensors"
    shards = write_in_pieces(path, layout_of(tensors), halves(tensors), shard_bytes=31)
    assert [each.name for each in shards] == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert {name: tensor.tolist() for name, tensor in read_tensors(tmp_path)} == {
        name: tensor.tolist() for name, tensor in tensors.items()
    }
    write_in_pieces(path, layout_of(tensors), halves(tensors))
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    tensors = {"a": torch.ones(6), "b": torch.ones(6)}
    write_in_pieces(path, layout_of(tensors), halves(tensors))
    before = path.read_bytes()

    def full(name: str) -> Iterator[Tensor]:
        yield tensors[name][:3]
        if name == "b":
            raise OSError(28, "No space left on device")
        yield tensors[name][3:]

    for limit in (files.SHARD_BYTES, 24):
        with pytest.raises(OSError, match=r"cannot write \d+ bytes, \d+ are free"):
            write_in_pieces(path, layout_of(tensors), full, shard_bytes=limit)
        assert os.listdir(tmp_path) == ["model.safetensors"] and path.read_bytes() == before
