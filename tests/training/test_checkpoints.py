"""The folder of a checkpoint: written beside, published by one rename, read without running code."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from torch import Tensor

from lightning_mllm.training.callbacks.averaging import EMA
from lightning_mllm.training.checkpoints import Replaced, SavedTensors, ShardedCheckpointIO, newest, read_state
from lightning_mllm.training.checkpoints.writing import Writer
from tests.training.runs import fit, last, saved, saved_tensors, weights
from tests.training.test_restarts import StopIn, Stopped

DATA = {"steps": 6, "micro_batch": 4}


def save(path: Path, step: int = 1, **more: Any) -> None:
    io = ShardedCheckpointIO()
    io.save(path, {"weights.w": torch.full((40, 25), float(step)), "exp_avg.w": torch.zeros(2)}, {"step": step}, **more)
    io.wait()


def test_the_newest_replaces_the_others(tmp_path: Path) -> None:
    for step in (9, 10):
        save(tmp_path / f"step-{step}", step)
    assert newest(tmp_path) == tmp_path / "step-10"
    (tmp_path / ".step-3.part").mkdir()
    save(tmp_path / "step-11", 11, replaces=Replaced("step-*"))
    assert [each.name for each in tmp_path.iterdir()] == ["step-11"]
    found = SavedTensors(tmp_path / "step-11")
    assert set(found) == {"weights.w", "exp_avg.w"} and torch.equal(found["weights.w"], torch.full((40, 25), 11.0))
    files = sorted(each.name for each in (tmp_path / "step-11").iterdir())
    assert files == ["manifest.json", "shard-00001-model-00001-of-00001.safetensors", "state.pt"]
    save(tmp_path / "step-11", 12, replaces=Replaced("step-*"))
    assert read_state(tmp_path / "step-11") == {"step": 12}, "written again under the same name"
    assert [each.name for each in tmp_path.iterdir()] == ["step-11"]


def full_disk(self: Any, *arguments: Any, **named: Any) -> None:
    (Path(self.path) / "half").write_bytes(b"half")
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("moment", ["write_data", "finish"])
def test_a_save_that_fails_leaves_the_old_one_and_nothing_else(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "step-1")
    monkeypatch.setattr(Writer, moment, full_disk)
    with pytest.raises(OSError, match=r"step-2: cannot write \d+ bytes, \d+ are free \(No space left on device\)"):
        save(tmp_path / "step-2", replaces=Replaced("step-*"))
    assert [each.name for each in tmp_path.iterdir()] == ["step-1"]
    assert newest(tmp_path) == tmp_path / "step-1"


def test_what_is_no_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    load = ShardedCheckpointIO().load_checkpoint
    with pytest.raises(ValueError, match=r"none: found no whole checkpoint \(is not there\), expected one; put"):
        load(tmp_path / "none")
    (shard,) = (name for name in _files(tmp_path / "step-0") if name.startswith("shard"))
    for number, (file, content, reason) in enumerate(
        (
            (shard, None, "shard-00001.* is missing"),
            (shard, b"cut", "has 3 of"),
            ("state.pt", b"", "has 0 of"),
            ("manifest.json", b"<html>", "JSONDecodeError"),
            ("manifest.json", b"{}", "KeyError: 'files'"),
        ),
        start=1,
    ):
        path = tmp_path / f"step-{number}"
        save(path)
        (path / file).unlink()
        if content is not None:
            (path / file).write_bytes(content)
        with pytest.raises(ValueError, match=f"step-{number}: found no whole checkpoint .*{reason}"):
            load(path)
    damaged = tmp_path / "step-0" / shard
    damaged.write_bytes(b"\xff" * damaged.stat().st_size)
    with pytest.raises(ValueError, match=r"step-0: found no whole checkpoint .* has SHA-256 \w+\.\.\., manifest"):
        load(tmp_path / "step-0")


def _files(path: Path) -> list[str]:
    save(path)
    return [each.name for each in path.iterdir()]


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Bomb:
        def __reduce__(self):
            return Path.touch, (tmp_path / "exploded",)

    save(tmp_path / "step-1")
    state = tmp_path / "step-1" / "state.pt"
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    for write in (lambda: state.write_bytes(pickle.dumps(Bomb())), lambda: torch.save({"loops": Bomb()}, state)):
        write()
        manifest = tmp_path / "step-1" / "manifest.json"
        files = {each.name: each.stat().st_size for each in manifest.parent.iterdir() if each != manifest}
        manifest.write_text(json.dumps({"format": 1, "files": files}))
        with pytest.raises(ValueError, match=r"holds more than tensors and plain values"):
            ShardedCheckpointIO().load_checkpoint(tmp_path / "step-1")
    assert not (tmp_path / "exploded").exists()


def test_a_resume_opens_no_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Stopped):
        fit(tmp_path, data=DATA, callbacks=[StopIn(3, "before")])
    load = torch.load

    def plain(*arguments: Any, weights_only: bool = False, **named: Any) -> Any:
        assert weights_only, "torch.load without weights_only"
        return load(*arguments, weights_only=True, **named)

    def refuse(*arguments: Any, **named: Any) -> None:
        raise AssertionError("unpickled")

    monkeypatch.setattr(torch, "load", plain)
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    fit(tmp_path, data=DATA, resume=True)
    assert not list(tmp_path.rglob(".metadata"))


# ---- in the background -----------------------------------------------------------------------------------------------


class Steps(Callback):
    """The trained weights and the first moments after each step."""

    def __init__(self) -> None:
        self.seen: dict[int, dict[str, Tensor]] = {}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        moments = trainer.optimizers[0].state
        self.seen[trainer.global_step] = {f"weights.{n}": t for n, t in weights(pl_module).items()} | {
            f"exp_avg.{n}": moments[p]["exp_avg"].clone() for n, p in pl_module.net.named_parameters() if p in moments
        }


def test_what_is_written_is_the_state_at_the_moment_of_saving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step 4 is taken before anything of step 3 is on the disk; the save of step 6 waits for that of step 3."""
    write, release, order = Writer.write_data, threading.Event(), []

    def late(self: Writer, *arguments: Any) -> Any:
        assert release.wait(60)
        order.append(self.final.name)
        return write(self, *arguments)

    class Release(Callback):
        def on_train_batch_end(self, trainer: Any, *arguments: Any) -> None:
            if trainer.global_step == 5:
                assert order == [] and newest(tmp_path / "checkpoints") is None
                release.set()

    monkeypatch.setattr(Writer, "write_data", late)
    steps = Steps()
    with pytest.raises(Stopped):
        fit(tmp_path, data=DATA, every_n_steps=3, callbacks=[steps, Release(), StopIn(5, "before")])
    assert saved(tmp_path)["global_step"] == 3, "an exception waits for it"
    found = saved_tensors(tmp_path)
    for name, tensor in steps.seen[3].items():
        assert torch.equal(found[name], tensor), name
    assert any(not torch.equal(found[name], tensor) for name, tensor in steps.seen[5].items())
    fit(tmp_path, data=DATA, every_n_steps=3, resume=True)
    assert order == ["step-3", "step-6"] and last(tmp_path).name == "step-6"


def test_a_save_that_fails_in_the_background_ends_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Writer.write_data
    third = lambda self, *given: (full_disk if self.final.name == "step-3" else write)(self, *given)  # noqa: E731
    monkeypatch.setattr(Writer, "write_data", third)
    with pytest.raises(OSError, match=r"cannot write \d+ bytes, \d+ are free \(No space left on device\)"):
        fit(
            tmp_path,
            data=DATA,
        )
    assert sorted(each.name for each in (tmp_path / "checkpoints").iterdir()) == ["step-1", "step-2"]


@pytest.mark.fault
def test_no_checkpoint_holds_a_number_that_is_none(tmp_path: Path, fault_row: Callable[[str, str, str], None]) -> None:
    """A weight, a moment or an average, whatever made it so: not written, and the earlier checkpoints stay."""

    class Spoils(Callback):
        def __init__(self, spoil: Callable[[Any, Any], Tensor], value: float) -> None:
            self.spoil, self.value = spoil, value

        def on_train_batch_end(self, trainer, pl_module, *rest) -> None:
            if trainer.global_step == 3:
                self.spoil(trainer, pl_module).detach().flatten()[1] = self.value

    average = EMA()
    cases: list[tuple[Callable[[Any, Any], Tensor], str]] = [
        (lambda trainer, net: net.net.connector.weight, r"weights\.connector\.weight"),
        (lambda trainer, net: next(iter(trainer.optimizers[0].state.values()))["exp_avg_sq"], r"exp_avg_sq\.\S+"),
        (lambda trainer, net: average.held[0]["connector.weight"], r"average\.0\.connector\.weight"),
    ]
    for number, (spoil, name) in enumerate(cases):
        folder = tmp_path / str(number)
        with pytest.raises(ValueError, match=rf"step-3: not written, {name}: found (nan|inf) in 1 of \d+ values"):
            fit(folder, data=DATA, callbacks=[average, Spoils(spoil, (float("nan"), float("inf"))[number % 2])])
        assert sorted(each.name for each in (folder / "checkpoints").iterdir()) == ["step-1", "step-2"]
    fault_row("T8", "3 of 3", "a weight, a moment and an average that are no number: no checkpoint is written")


@pytest.mark.parametrize("moment", ["write_data", "finish", "publish"])
def test_killed_while_it_saves(moment: str, tmp_path: Path) -> None:
    """The process is gone between any two of a save's acts; the checkpoint before it is complete."""

    def work() -> None:
        write, rename = getattr(Writer, moment, None), Path.rename

        def killed(self: Writer, *arguments: Any, **named: Any) -> Any:
            if self.final.name == "step-4":
                os.kill(os.getpid(), signal.SIGKILL)
            assert write is not None
            return write(self, *arguments, **named)

        def killed_after(self: Path, target: Path) -> Any:
            done = rename(self, target)
            if Path(target).name == "step-4":
                os.kill(os.getpid(), signal.SIGKILL)
            return done

        if moment == "publish":
            Path.rename = killed_after  # type: ignore[method-assign]
        else:
            setattr(Writer, moment, killed)
        fit(tmp_path, data=DATA)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert last(tmp_path).name == ("step-4" if moment == "publish" else "step-3")
    fit(tmp_path / "whole", data=DATA)
    fit(tmp_path, data=DATA, resume=True)
    assert sorted(each.name for each in (tmp_path / "checkpoints").iterdir()) == ["step-5", "step-6"]
    expected, found = saved_tensors(tmp_path / "whole"), saved_tensors(tmp_path)
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
