"""Nothing that is read runs code that a file holds: a bomb is offered at each door."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from data_modules import shared_array
from data_modules.containers import offset_index
from data_modules.sources.refcoco import refuse_pickle
from lightning_mllm.commands.config import ConfigError
from lightning_mllm.commands.run_folder import check_ckpt_path
from lightning_mllm.training.checkpoints import SavedTensors, ShardedCheckpointIO, read_state
from lightning_mllm.training.checkpoints.manifest import FileFacts, write_manifest
from lightning_mllm.weights.feature_store import read_facts
from lightning_mllm.weights.files import TensorFiles
from lightning_mllm.weights.lineage import InitSource
from tests.training.checkpoints.damages import saved, shard

TARGET = "executed"


class Bomb:
    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (TARGET,)


PICKLED = pickle.dumps({"state_dict": Bomb()}, protocol=2)


def _zipped(name: str) -> Path:
    torch.save({"state_dict": {"w": torch.ones(1)}, "hyper_parameters": Bomb()}, name)
    return Path(name)


def _folder(name: str, *more: str) -> Path:
    """A folder with a bomb as each file."""
    folder = Path(name)
    folder.mkdir()
    for each in more:
        (folder / each).write_bytes(PICKLED)
    return folder


def _checkpoint(name: str, *more: str) -> Path:
    """A whole checkpoint of ours with a bomb as each other file."""
    path = saved(Path(name), 1) / "step-1"
    for each in more:
        (path / each).write_bytes(PICKLED)
    return path


def _state(content: object) -> Path:
    """A checkpoint whose state is a bomb, and whose manifest agrees."""
    path = saved(Path("checkpoints"), 1) / "step-1"
    torch.save(content, path / "state.pt")
    write_manifest(path, "step-1", {each.name: FileFacts.of(each) for each in (path / "state.pt", shard(path))})
    return path


def _choose(path: Path) -> None:
    chosen = ShardedCheckpointIO().choose(path)
    read_state(chosen)
    dict(SavedTensors(chosen))


def _tensors(path: Path) -> None:
    dict(TensorFiles(path))


def _index(name: str, file: str) -> Path:
    folder = _folder(name, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"w": file}}))
    return folder


def _array(name: str) -> Path:
    folder = Path(name)
    folder.mkdir()
    np.save(folder / "starts.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    return folder / "starts.npy"


DOORS: dict[str, Callable[[], object]] = {
    "init_from a .ckpt": lambda: _tensors(_zipped("a.ckpt")),
    "init_from a .pt": lambda: _tensors(_zipped("a.pt")),
    "init_from a .bin": lambda: _tensors(_zipped("a.bin")),
    "init_from a .pth of the old kind": lambda: _tensors(shutil.copyfile(_folder("f", "a") / "a", Path("a.pth"))),
    "a bomb called .safetensors": lambda: _tensors(shutil.copyfile(_folder("f", "a") / "a", Path("a.safetensors"))),
    "pytorch_model.bin of a folder": lambda: _tensors(_folder("f", "pytorch_model.bin")),
    "a shard that an index names": lambda: _tensors(_index("f", "pytorch_model-00001-of-00001.bin")),
    "ckpt_path a .ckpt": lambda: check_ckpt_path(str(_zipped("a.ckpt"))),
    "ckpt_path an address": lambda: check_ckpt_path("http://127.0.0.1:9/a.ckpt"),
    "init_from an address": lambda: InitSource.find("http://127.0.0.1:9/a.ckpt", Path("runs")),
    "loading a full file of FSDP": lambda: _choose(_zipped("full.ckpt")),
    "a folder of torch.distributed.checkpoint": lambda: _choose(_folder("dcp", ".metadata", "meta.pt", "__0_0.distcp")),
    ".metadata and meta.pt in a checkpoint": lambda: _choose(_checkpoint("c", ".metadata", "meta.pt", "rng_state.pth")),
    "a shard in a checkpoint": lambda: _choose(_checkpoint("c", "shard-00001-model-00001-of-00001.safetensors")),
    "state.pt with a bomb as random states": lambda: _choose(_state({"callbacks": {"RandomStates": Bomb()}})),
    "state.pt with a class to make": lambda: _choose(
        _state({"_instantiator": "os.system", "hyper_parameters": Bomb()})
    ),
    "the manifest": lambda: _choose(_checkpoint("c", "manifest.json")),
    "an array of a data index": lambda: offset_index.mapped(_array("index")),
    "an array that processes share": lambda: shared_array._mapped(_array("shared")),
    "the facts of a feature cache": lambda: read_facts(_folder("cache", "features.json", "cache.json", "facts.json")),
    "refs of RefCOCO": lambda: refuse_pickle("refs(unc).p"),
}
"""Each reads a bomb as the program would."""


@pytest.mark.fault
@pytest.mark.parametrize("forced", ["0", "1"])
def test_no_door_runs_code(
    forced: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault_row: Callable[[str, str, str], None]
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", forced)
    refused = []
    for number, (door, open_it) in enumerate(DOORS.items()):
        place = tmp_path / str(number)
        place.mkdir()
        monkeypatch.chdir(place)
        try:
            open_it()
        except (ValueError, ConfigError) as error:
            assert "weights_only=False" not in str(error), door
            refused.append(door)
        assert not Path(TARGET).exists(), door
    assert set(DOORS) - set(refused) == {".metadata and meta.pt in a checkpoint"}, "which are not read at all"
    fault_row(
        "T13", f"{len(DOORS)} of {len(DOORS)}", f"doors at which a pickle did not run, variable of torch {forced}"
    )


def test_the_bomb_goes_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.load(_zipped("a.ckpt"), weights_only=False)
    assert Path(TARGET).exists()
