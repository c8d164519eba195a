"""Tensor files: whole or absent, lazy, and never a door for code."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lightning_mllm.weights import files
from lightning_mllm.weights.files import TensorFiles, read_tensors, resource, sha256, write_tensors, write_text

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b.weight": torch.ones(3, dtype=torch.bfloat16), "c": torch.tensor(7)}


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return list(found) == list(expected) and all(
        found[name].dtype == tensor.dtype and torch.equal(found[name], tensor) for name, tensor in expected.items()
    )


def test_round_trip_is_exact(tmp_path: Path) -> None:
    (file,) = write_tensors(tmp_path / "sub/model.safetensors", TENSORS)
    assert file == tmp_path / "sub/model.safetensors"
    assert [each.name for each in file.parent.iterdir()] == ["model.safetensors"]
    assert same(dict(sorted(read_tensors(file))), TENSORS)
    assert same(dict(sorted(read_tensors(file.parent))), TENSORS)


def test_equal_tensors_are_equal_bytes(tmp_path: Path) -> None:
    written = [write_tensors(tmp_path / f"{n}/model.safetensors", TENSORS)[0].read_bytes() for n in range(8)]
    assert len(set(written)) == 1


def test_views_and_shared_tensors_are_written(tmp_path: Path) -> None:
    table = torch.randn(4, 4)
    pairs = [("whole", table), ("again", table), ("row", table[1]), ("turned", table.t())]
    write_tensors(tmp_path / "model.safetensors", pairs)
    assert torch.equal(TensorFiles(tmp_path)["turned"], table.t())
    assert torch.equal(TensorFiles(tmp_path)["row"], table[1])


def test_shards_with_an_index(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_tensors(path, TENSORS)
    shards = write_tensors(path, iter(TENSORS.items()), shard_bytes=25)
    assert [each.name for each in shards] == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert not path.exists()
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["weight_map"]["c"] == "model-00002-of-00002.safetensors"
    assert index["metadata"]["total_size"] == 38
    assert same(dict(read_tensors(tmp_path)), TENSORS)
    write_tensors(path, TENSORS)
    assert [each.name for each in tmp_path.iterdir()] == ["model.safetensors"]


def test_files_have_the_mode_of_others_and_the_mask_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(mask: int) -> int:
        raise AssertionError("the mask is that of every thread")

    old = os.umask(0o027)
    try:
        monkeypatch.setattr(os, "umask", changed)
        write_tensors(tmp_path / "model.safetensors", TENSORS)
        monkeypatch.undo()
    finally:
        os.umask(old)
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == 0o640


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    write_tensors(path, TENSORS)
    before = path.read_bytes()

    def full(tensors: dict, beside: Path, metadata: dict) -> None:
        beside.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(OSError, match=r"cannot write 38 bytes, \d+ are free"):
        write_tensors(path, TENSORS)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_a_source_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    def pairs():
        yield "a", torch.ones(100)
        yield "b", torch.ones(100)
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        write_tensors(tmp_path / "model.safetensors", pairs(), shard_bytes=400)
    assert os.listdir(tmp_path) == []


def test_text_is_replaced_whole(tmp_path: Path) -> None:
    write_text(tmp_path / "a.json", "one")
    write_text(tmp_path / "a.json", "two")
    assert os.listdir(tmp_path) == ["a.json"] and (tmp_path / "a.json").read_text() == "two"


@pytest.mark.parametrize("legacy", [False, True])
def test_pickled_tensors_are_read(tmp_path: Path, legacy: bool) -> None:
    file = tmp_path / "mm_projector.bin"
    torch.save(TENSORS, file, _use_new_zipfile_serialization=not legacy)
    assert same(dict(read_tensors(file)), TENSORS)


def test_of_a_checkpoint_of_lavis_the_model_is_read(tmp_path: Path) -> None:
    torch.save({"model": TENSORS, "optimizer": {"state": {}}, "epoch": 3}, tmp_path / "checkpoint.pth")
    assert same(dict(read_tensors(tmp_path / "checkpoint.pth")), TENSORS)


class Bomb:
    def __reduce__(self):
        return os.mkdir, (str(Bomb.target),)

    target = Path()


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("suffix", files.PICKLES)
def test_a_pickle_that_would_run_code_is_refused(
    tmp_path: Path, suffix: str, legacy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(files.FORCE_PICKLE, "1")
    Bomb.target = tmp_path / "executed"
    file = tmp_path / f"weights{suffix}"
    torch.save({"a": torch.ones(1), "b": Bomb()}, file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=r"refused, it contains \w+\.mkdir"):
        dict(read_tensors(file))
    assert not Bomb.target.exists()
    assert os.environ[files.FORCE_PICKLE] == "1"


def damaged(tmp_path: Path) -> dict[str, Path]:
    whole = tmp_path / "whole.safetensors"
    save_file(TENSORS, whole)
    torch.save(TENSORS, tmp_path / "whole.bin")
    cut, cut_bin, text = tmp_path / "cut.safetensors", tmp_path / "cut.bin", tmp_path / "text.bin"
    cut.write_bytes(whole.read_bytes()[:-1])
    cut_bin.write_bytes((tmp_path / "whole.bin").read_bytes()[:300])
    text.write_text("<html>not found</html>")
    (tmp_path / "empty.safetensors").touch()
    (tmp_path / "empty.bin").touch()
    torch.save({"net": {"a": torch.ones(1)}}, tmp_path / "nested.pt")
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    (tmp_path / "notes.txt").touch()
    (tmp_path / "folder").mkdir()
    return {
        "cut.safetensors": cut,
        "cut.bin": cut_bin,
        "text.bin": text,
        **{name: tmp_path / name for name in ("empty.safetensors", "empty.bin", "nested.pt", "list.pt", "notes.txt")},
        "folder": tmp_path / "folder",
        "absent.safetensors": tmp_path / "absent.safetensors",
    }


def test_damaged_files_are_refused_by_name(tmp_path: Path) -> None:
    for name, path in damaged(tmp_path).items():
        with pytest.raises(ValueError, match=rf"{name}.*(damaged|expected)"):
            dict(read_tensors(path))


def test_an_index_that_lies_is_refused(tmp_path: Path) -> None:
    write_tensors(tmp_path / "model.safetensors", TENSORS, shard_bytes=25)
    index = tmp_path / "model.safetensors.index.json"
    honest = json.loads(index.read_text())
    lies = {
        r"outside the folder": {"a": "../model-00001-of-00002.safetensors"},
        r"model-00009": {**honest["weight_map"], "a": "model-00009.safetensors"},
        r"names tensor 'a', expected to find it": {**honest["weight_map"], "a": "model-00002-of-00002.safetensors"},
        r"names tensor 'd'": {**honest["weight_map"], "d": "model-00002-of-00002.safetensors"},
    }
    for message, places in lies.items():
        index.write_text(json.dumps({"weight_map": places}))
        with pytest.raises(ValueError, match=message):
            TensorFiles(tmp_path)
    index.write_text("{}")
    with pytest.raises(ValueError, match="weight_map"):
        TensorFiles(tmp_path)


def test_nothing_is_read_before_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tensors(tmp_path / "model.safetensors", TENSORS)
    read = []
    opened = files._open_safetensors

    class Handle:
        def __init__(self, file: Path) -> None:
            self.inner = opened(file)

        def keys(self) -> list[str]:
            return self.inner.keys()

        def get_tensor(self, name: str) -> torch.Tensor:
            read.append(name)
            return self.inner.get_tensor(name)

    monkeypatch.setattr(files, "_open_safetensors", Handle)
    tensors = TensorFiles(tmp_path)
    assert len(tensors) == 3 and read == []
    assert torch.equal(tensors["c"], TENSORS["c"]) and read == ["c"]


def test_digests_tell_contents_apart(tmp_path: Path) -> None:
    write_tensors(tmp_path / "one/model.safetensors", TENSORS)
    write_tensors(tmp_path / "two/model.safetensors", TENSORS)
    assert sha256(tmp_path / "one") == sha256(tmp_path / "two")
    write_tensors(tmp_path / "two/model.safetensors", {**TENSORS, "c": torch.tensor(8)})
    assert sha256(tmp_path / "one") != sha256(tmp_path / "two")
    write_text(tmp_path / "x", "abc")
    assert sha256(tmp_path / "x").startswith("ba7816bf")  # FIPS 180-2, appendix B.1


def test_resources_of_the_package() -> None:
    assert resource("package:contracts.py").is_file()
    assert resource("some/where") == Path("some/where")
    with pytest.raises(ValueError, match="package:backbones/none"):
        resource("package:backbones/none")
