from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from lightning_mllm.training.callbacks.checkpoint import SafeCheckpointIO, StageCheckpoint
from tests.training.runs import fit


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "last.ckpt"
    SafeCheckpointIO().save_checkpoint({"step": 1, "weights": torch.ones(2)}, path)

    def full(checkpoint, file) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        SafeCheckpointIO().save_checkpoint({"step": 2}, path)
    assert [each.name for each in path.parent.iterdir()] == ["last.ckpt"]
    assert SafeCheckpointIO().load_checkpoint(path)["step"] == 1


def test_what_is_no_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found no checkpoint"):
        SafeCheckpointIO().load_checkpoint(tmp_path / "none.ckpt")
    good = tmp_path / "good.ckpt"
    SafeCheckpointIO().save_checkpoint({"weights": torch.ones(2000)}, good)
    for name, content in {"empty": b"", "text": b"<html>", "cut": good.read_bytes()[:-3000]}.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}: cannot read the checkpoint"):
            SafeCheckpointIO().load_checkpoint(path)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Bomb:
        def __reduce__(self):
            return Path.touch, (tmp_path / "exploded",)

    (tmp_path / "bomb.ckpt").write_bytes(pickle.dumps(Bomb()))
    torch.save({"state_dict": Bomb()}, tmp_path / "zip.ckpt")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    for name in ("bomb.ckpt", "zip.ckpt"):
        with pytest.raises(ValueError, match="cannot read the checkpoint"):
            SafeCheckpointIO().load_checkpoint(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


def test_checkpoints_hold_what_is_trained_and_plain_values(tmp_path: Path) -> None:
    module = fit(tmp_path, every_n_steps=3, data={"steps": 8})
    kept = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert kept["global_step"] == 8, "the last step is saved even where it is no multiple"
    # The language part trains, so its buffer belongs to what is kept; nothing of the frozen vision part does.
    assert set(kept["state_dict"]) == {*module.trained, "language.scale"}
    assert [each.name for each in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]
    assert {"torch", "numpy", "numpy_rest", "python", "python_rest"} == set(
        kept["callbacks"]["RandomStates"]["ranks"][0]
    )


def test_negative_intervals_are_refused() -> None:
    with pytest.raises(ValueError, match="every_n_steps: found -1"):
        StageCheckpoint(every_n_steps=-1)
