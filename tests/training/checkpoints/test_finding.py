"""The newest whole checkpoint is used, and each that is passed over is told."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_mllm.training.checkpoints import ShardedCheckpointIO, newest, read_state
from lightning_mllm.training.checkpoints.finding import candidates, last_written, must_have, number_of, record
from tests.training.checkpoints.damages import NAMED, OTHERS, saved, shard


@pytest.mark.fault
def test_damaged_ones_are_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fault_row: Callable[[str, str, str], None]
) -> None:
    """Each kind in the newest of three, in the oldest, and in all."""
    whole, counts = saved(tmp_path / "whole", 10, 20, 30), {"T4": 0, "others": 0}
    for kind, harm in {**NAMED, **OTHERS}.items():
        for damaged in ((30,), (10,), (30, 20), (30, 20, 10)):
            run = tmp_path / f"{kind}{len(damaged)}{damaged[0]}"
            folder = Path(shutil.copytree(whole, run / "checkpoints"))
            for step in damaged:
                harm(folder / f"step-{step}")
            if len(damaged) == 3:
                with pytest.raises(ValueError, match="found no whole checkpoint, expected one to go on from; put one"):
                    ShardedCheckpointIO().choose(folder)
            else:
                used = 30 - 10 * len(damaged) if damaged[0] == 30 else 30
                chosen = ShardedCheckpointIO().choose(folder)
                assert chosen.name == f"step-{used}" and read_state(chosen) == {"step": used}, (kind, damaged)
            lines = capsys.readouterr().out.splitlines()
            told = damaged if damaged[0] == 30 else ()
            assert len(lines) == len(told), (kind, lines)
            for step, line in zip(told, lines, strict=True):
                kept = "" if len(told) == 3 else f", step-{used} is used"
                assert f"step-{step}" in line and "skipped (" in line, line
                assert line.endswith(f"; {step - (0 if len(told) == 3 else used)} steps are lost{kept}"), line
                assert not any(word in line for word in ("weights_only=False", "rm ", "delete", "Traceback")), line
        counts["T4" if kind in NAMED else "others"] += 1
    fault_row("T4", f"{counts['T4']} of {len(NAMED)}", "damaged checkpoints, each newest, oldest, two and all of three")
    fault_row("T4", f"{counts['others']} of {len(OTHERS)}", "other damages, likewise")


def test_one_that_vanished_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved(tmp_path / "checkpoints", 10, 20)
    assert last_written(folder) == 20
    shutil.rmtree(folder / "step-20")
    assert ShardedCheckpointIO().choose(folder) == folder / "step-10"
    (line,) = capsys.readouterr().out.splitlines()
    assert "step-20: skipped (is gone, though checkpoints.json names it); 10 steps are lost, step-10 is used" in line
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match=r"found no checkpoint, expected that of step 20, which checkpoints\.json"):
        must_have(folder)
    record(folder).write_text("{")
    with pytest.raises(ValueError, match=r"checkpoints\.json: found JSONDecodeError, expected the step"):
        must_have(folder)
    record(folder).unlink()
    assert not must_have(folder), "a run that never had one begins"


def test_a_checkpoint_that_is_named_is_used_or_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved(tmp_path / "checkpoints", 10, 20)
    assert ShardedCheckpointIO().choose(folder / "step-10").name == "step-10"
    shard(folder / "step-20").unlink()
    with pytest.raises(ValueError, match=r"step-20: found no whole checkpoint \(shard-.* is missing\), expected one"):
        ShardedCheckpointIO().choose(folder / "step-20")
    assert capsys.readouterr().out == ""


def test_names_that_are_none_of_ours(tmp_path: Path) -> None:
    folder = saved(tmp_path / "checkpoints", 9, 10)
    for name in ("step-x", "step-", "step-10-copy", "step-11.bak", "mystep-12", "best-20"):
        shutil.copytree(folder / "step-10", folder / name)
    assert newest(folder) == folder / "step-10"
    assert [each.name for each in candidates(folder)] == ["step-10", "step-9"]
    assert number_of("best-20", "best-*") == 20 and number_of("step-20", "best-*") is None


def test_one_that_was_being_replaced_counts(tmp_path: Path) -> None:
    """Killed between two renames of a save under a name that was taken."""
    folder = saved(tmp_path / "checkpoints", 10)
    (folder / "step-10").rename(folder / ".step-10.old")
    assert ShardedCheckpointIO().choose(folder) == folder / ".step-10.old"
    saved(folder, 10)
    assert [each.name for each in folder.iterdir()] == ["step-10"]
