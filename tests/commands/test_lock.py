from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import socket
import time
from pathlib import Path

import pytest
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lightning_mllm.cli import main
from lightning_mllm.commands.config import ConfigError
from lightning_mllm.commands.lock import LOCK, locked, locks_are_local
from tests.commands.conftest import TOY
from tests.test_cli import refused


def hold(folder: Path) -> None:
    with locked(folder):
        time.sleep(60)


def held(folder: Path) -> int:
    """The process id of another process that trains in the folder."""
    process = multiprocessing.get_context("fork").Process(target=hold, args=(folder,), daemon=True)
    process.start()
    end = time.monotonic() + 20
    while time.monotonic() < end:
        if (folder / LOCK).is_file() and (folder / LOCK).read_text():
            break
        time.sleep(0.01)
    assert process.pid is not None
    return process.pid


def test_a_second_run_is_refused_and_a_dead_ones_folder_is_taken_over(tmp_path: Path) -> None:
    pid = held(tmp_path)
    with (
        pytest.raises(ConfigError, match=rf"is being trained by process {pid} on {socket.gethostname()}, expected one"),
        locked(tmp_path),
    ):
        pass
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == pid, "the refused one takes nothing away"
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert (tmp_path / LOCK).is_file()
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
        with pytest.raises(ConfigError, match=f"process {os.getpid()}"), locked(tmp_path):
            pass
    assert not (tmp_path / LOCK).exists()


def test_ranks_of_one_run_share_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with locked(tmp_path):
        monkeypatch.setattr(rank_zero_only, "rank", 1)
        with locked(tmp_path):
            pass
        assert (tmp_path / LOCK).is_file()


def test_a_job_goes_on_on_another_machine_unless_locks_do_not_reach_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = json.dumps({"host": "elsewhere", "pid": 7})
    (tmp_path / LOCK).write_text(left)
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["host"] == socket.gethostname()
    (tmp_path / LOCK).write_text(left)
    device = os.stat(tmp_path).st_dev
    mounts = tmp_path / "mountinfo"
    line = f"9 1 {os.major(device)}:{os.minor(device)} / /runs rw - nfs4 server:/runs rw,vers=4.2"
    mounts.write_text(f"8 1 0:99999 / /other rw - nfs server:/other rw,nolock\n{line}\n")
    assert not locks_are_local(tmp_path, mounts)
    mounts.write_text(f"{line},local_lock=all\n")
    assert locks_are_local(tmp_path, mounts)
    monkeypatch.setattr("lightning_mllm.commands.lock.locks_are_local", lambda path: True)
    sentence = r"process 7 on elsewhere, .*if that process is gone, delete .*\.lock"
    with pytest.raises(ConfigError, match=sentence), locked(tmp_path):
        pass
    assert json.loads((tmp_path / LOCK).read_text())["host"] == "elsewhere"

    def no_locks(file: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with pytest.raises(ConfigError, match=r"no lock for .* \(No locks available\)"), locked(tmp_path):
        pass


def test_the_command_says_who_trains_there_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    fit = ("fit", f"--config={TOY}", "--run_dir=run", "--stage.epochs=1", "--trainer.enable_progress_bar=false")
    pid = held(Path("run"))
    assert f"run_dir: run is being trained by process {pid} on" in refused(capsys, *fit)
    assert [each.name for each in Path("run").iterdir()] == [LOCK]
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    main(fit)
    assert Path("run/weights/stage.json").is_file() and not Path("run", LOCK).exists()


def test_a_fast_dev_run_of_an_experiment_ends_without_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "align.yaml").write_text(TOY.read_text())
    hardware = f"--hardware={TOY.parents[1] / 'experiments/_hardware/cpu.yaml'}"
    given = ("--hardware.micro_batch=4", "--trainer.fast_dev_run=true", "--trainer.enable_progress_bar=false")
    main(["run", "toy", hardware, *given])
    out = capsys.readouterr().out
    assert "runs/toy/align: fast_dev_run ended the training after step 1 of 1; the stage is not done, nothing is" in out
    assert out.endswith("runs/toy: no test and no report, for align is not done\n")
    assert not (tmp_path / "runs" / "toy" / "align").exists() and not list(tmp_path.rglob("report.*"))
