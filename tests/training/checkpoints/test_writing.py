"""A save that fails leaves what was there, and nothing else; none is published that could not be read again."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable
from datetime import datetime
from enum import Enum
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_mllm.training.checkpoints import Replaced, ShardedCheckpointIO, read_state
from tests.training.checkpoints.damages import saved
from tests.weights.disks import fill, in_child, small_disk

POINTS = 20 if os.environ.get("MLLM_FULL") else 5
NUMBERS = 30_000


class Suffix(Enum):
    OLD = ".old"


def save(folder: Path, step: int, keep: int = 2) -> None:
    io = ShardedCheckpointIO()
    tensors = {f"{kind}.w": torch.full((NUMBERS,), float(step)) for kind in ("weights", "exp_avg", "exp_avg_sq")}
    io.save(folder / f"step-{step}", tensors, {"step": step, "more": "x" * 20_000}, Replaced("step-*", keep))
    io.wait()


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def whole(folder: Path) -> dict[str, object]:
    return read_state(ShardedCheckpointIO().choose(folder))


@pytest.mark.fault
@pytest.mark.parametrize("keep", [1, 2])
def test_a_disk_that_fills_up(
    keep: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault_row: Callable[[str, str, str], None]
) -> None:
    """At 20 points of a save, from nothing free to all but a page; afterwards there is room, and it is written."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere").mkdir()
    folder, refused = tmp_path / "small/run/checkpoints", 0
    with small_disk(tmp_path / "small", 2_000_000) as mounted:
        if not mounted:
            pytest.skip("nothing may be mounted here; see the test below")
        folder.mkdir(parents=True)
        save(folder, 10, keep)
        one = sum(os.stat(each).st_blocks * 512 for each in folder.rglob("*"))
        for point in range(POINTS):
            filler = fill(tmp_path / "small", one * point // POINTS)
            with pytest.raises(OSError, match=r"step-20: cannot write \d+ bytes, \d+ are free \(No space left on dev"):
                save(folder, 20, keep)
            assert names(folder) == ["step-10"] and whole(folder)["step"] == 10
            refused += 1
            filler.unlink()
        save(folder, 20, keep)
        assert names(folder) == ["step-20"] if keep == 1 else ["step-10", "step-20"]
    assert names(tmp_path / "elsewhere") == []
    fault_row("T5", f"{refused} of {POINTS}", f"points at which a small disk fills up, {keep} kept: the earlier whole")


@pytest.mark.fault
def test_another_disk_for_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault_row: Callable[[str, str, str], None]
) -> None:
    with small_disk(tmp_path / "small", 65536) as mounted:
        if not mounted:
            pytest.skip("nothing may be mounted here")
        fill(tmp_path / "small", 0)
        monkeypatch.setenv("TMPDIR", str(tmp_path / "small"))
        for step in range(10, 30):
            save(tmp_path / "run/checkpoints", step)
        assert names(tmp_path / "run/checkpoints") == ["step-28", "step-29"]
        assert names(tmp_path / "small") == ["filler"]
    fault_row("T5", "20 of 20", "saves while the disk of TMPDIR is full: none needs it")


@pytest.mark.fault
def test_a_limit_on_the_size_of_files(tmp_path: Path, fault_row: Callable[[str, str, str], None]) -> None:
    """As a quota; it needs no mount."""
    folder = tmp_path / "checkpoints"
    save(folder, 10)
    largest = max(each.stat().st_size for each in folder.rglob("*"))

    def work() -> None:
        with pytest.raises(OSError, match=r"step-20: cannot write \d+ bytes, \d+ are free \(File too large\); earlier"):
            save(folder, 20)

    for point in range(POINTS):
        assert in_child(work, file_size=largest * point // POINTS) == (0, "")
        assert names(folder) == ["step-10"] and whole(folder)["step"] == 10
    fault_row("T5", f"{POINTS} of {POINTS}", "limits on the size of a file: the earlier checkpoint is whole")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["weights.w", "exp_avg.w", "average.0.w"])
def test_a_value_that_is_no_number_is_not_written(name: str, value: float, tmp_path: Path) -> None:
    folder, io = saved(tmp_path / "checkpoints", 1), ShardedCheckpointIO()
    io.save(folder / "step-2", {"weights.v": torch.ones(9), name: torch.tensor([1.0, value])}, {}, Replaced("step-*"))
    with pytest.raises(ValueError, match=rf"step-2: not written, {name}: found -?(nan|inf) in 1 of 2 .*; earlier"):
        io.wait()
    assert names(folder) == ["step-1"]


@pytest.mark.fault
def test_what_could_not_be_read_again_is_not_written(
    tmp_path: Path, fault_row: Callable[[str, str, str], None]
) -> None:
    folder = saved(tmp_path / "checkpoints", 1)
    others = (Path("a"), np.ones(2), datetime(2026, 1, 1), np.float64(1), slice(2), Suffix.OLD, Namespace(a=1))
    for other in others:
        io = ShardedCheckpointIO()
        io.save(folder / "step-2", {"weights.w": torch.ones(2)}, {"callbacks": {"x": other}}, Replaced("step-*"))
        with pytest.raises(ValueError, match=r"step-2: not written, state\.pt .*holds more than tensors and plain val"):
            io.wait()
        assert names(folder) == ["step-1"], other
    fault_row("T14", f"{len(others)} of {len(others)}", "states that weights_only could not load: not published")


def test_later_checkpoints_of_a_run_that_went_back_are_removed(tmp_path: Path) -> None:
    folder = saved(tmp_path / "checkpoints", 10, 20, 30)
    save(folder, 15)
    assert names(folder) == ["step-10", "step-15"]
    save(folder, 16, keep=3)
    assert names(folder) == ["step-10", "step-15", "step-16"]
    save(folder, 17, keep=5)
    assert names(folder) == ["step-10", "step-15", "step-16", "step-17"]
