from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Event
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


def race(folder: Path, gate: Event, told: SimpleQueue[str], done: Event) -> None:
    gate.wait()
    try:
        with locked(folder):
            told.put("")
            done.wait(60)
    except BaseException as error:
        told.put(f"{type(error).__name__}: {error}")


@pytest.mark.fault
def test_one_of_twelve_that_start_at_once_trains(tmp_path: Path, fault_row: Callable[[str, str, str], None]) -> None:
    fork, right = multiprocessing.get_context("fork"), 0
    runs = 12 if os.environ.get("MLLM_FULL") else 2
    for number in range(runs):
        gate, done, told = fork.Event(), fork.Event(), fork.SimpleQueue()
        racers = [fork.Process(target=race, args=(tmp_path / str(number), gate, told, done)) for _ in range(12)]
        for each in racers:
            each.start()
        gate.set()
        heard = [told.get() for _ in racers]
        done.set()
        for each in racers:
            each.join()
        right += heard.count("") == 1 and sum("is being trained by" in each for each in heard) == 11
        assert not (tmp_path / str(number)).exists(), "who made the folder, and wrote nothing, removes it"
    fault_row(
        "T29", f"{right} of {runs}", "twelve processes in one run folder: one trains, eleven are refused in a sentence"
    )
    assert right == runs


@pytest.mark.parametrize(
    "left",
    [b"", b"\x00\xff garbage", b"[" * 4096, b"[1]", b'{"host": 3, "pid": "x"}', b"x" * 1_000_000, b'{"pid": 1}'],
)
def test_what_a_dead_process_left_is_taken_over_whatever_it_says(left: bytes, tmp_path: Path) -> None:
    """A process id may be another's by now, as 1 is."""
    (tmp_path / LOCK).write_bytes(left)
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert not (tmp_path / LOCK).exists()


def test_nothing_else_is_taken_for_a_lock(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    for name in ("link", "pipe", "folder"):
        (tmp_path / name).mkdir()
    (tmp_path / "link" / LOCK).symlink_to(tmp_path / "victim")
    (tmp_path / "folder" / LOCK).mkdir()
    os.mkfifo(tmp_path / "pipe" / LOCK)
    for name, error in (("link", OSError), ("folder", OSError), ("pipe", ConfigError)):
        with pytest.raises(error, match=rf"{name}/\.lock"), locked(tmp_path / name):
            pass
    assert (tmp_path / "victim").read_text() == "precious"


def test_a_lock_file_that_is_deleted_lets_nobody_in(tmp_path: Path) -> None:
    with locked(tmp_path):
        (tmp_path / LOCK).unlink()
        with pytest.raises(ConfigError, match="is being trained by another process"), locked(tmp_path):
            pass


def test_workers_that_outlive_their_process_hold_nothing(tmp_path: Path) -> None:
    worker: list[int] = []
    reading, writing = os.pipe()
    if (process := os.fork()) == 0:
        with locked(tmp_path):
            if (own := os.fork()) == 0:
                time.sleep(60)
            os.write(writing, str(own).encode())
            time.sleep(60)
        os._exit(0)
    worker.append(int(os.read(reading, 20)))
    with pytest.raises(ConfigError, match=f"process {process} on"), locked(tmp_path):
        pass
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    with locked(tmp_path):
        os.kill(worker[0], 0)
    os.kill(worker[0], signal.SIGKILL)


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
