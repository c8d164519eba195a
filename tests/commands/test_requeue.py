"""A notice of SLURM ends in a checkpoint of ours and a job that is queued again, where that is wanted."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from lightning_mllm import signals
from lightning_mllm.commands import run
from lightning_mllm.commands.requeue import job_id, requeue, requeued
from tests.commands.test_stopped_runs import experiment
from tests.training.callbacks.signalled import STAGE, mllm
from tests.training.callbacks.test_signals import FULL, before_micro_batch, checkpoints

CASES = {"wanted": (), "not wanted": ("--hardware.requeue=false",)}


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the arguments of `scontrol` are written, which answers as the variable ANSWER says."""
    told = tmp_path / "told"
    program = tmp_path / "bin" / "scontrol"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {told}\necho "$ANSWER" >&2\n[ -z "$ANSWER" ]\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("ANSWER", raising=False)
    return told


@pytest.mark.fault
@pytest.mark.parametrize("case", CASES if FULL else ["wanted"])
def test_a_notice_of_slurm(case: str, scontrol: Path, tmp_path: Path, fault_row) -> None:
    folder = tmp_path / "run"

    def before() -> None:
        os.environ.update(SLURM_JOB_ID="77", SLURM_JOB_NAME="train", SLURM_NTASKS="1", SLURM_PROCID="0")
        os.environ.update(SLURM_NODELIST="localhost", SLURM_LOCALID="0", SLURM_NODEID="0")
        before_micro_batch(4, lambda: signal.raise_signal(signal.SIGUSR1))()

    arguments = ("fit", *STAGE, f"--run_dir={folder}", "--checkpoint_every=100", *CASES[case])
    assert mllm(tmp_path / "log", *arguments, before=before) == 138
    assert checkpoints(folder)[-1] == "step-2" and not list(folder.rglob("hpc_ckpt*"))
    said = (tmp_path / "log").read_text()
    if case == "wanted":
        assert scontrol.read_text() == "requeue 77\n" and said.endswith("mllm: job 77 is queued again\n")
    else:
        assert not scontrol.exists()
    fault_row("T3", "1 of 1", f"SIGUSR1 in a job of SLURM (mocked), queued again: {case}")


@pytest.mark.parametrize("setting", ["", "--hardware.requeue=false"])
def test_a_notice_between_two_stages(
    setting: str, scontrol: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def before() -> None:
        os.environ.update(SLURM_JOB_ID="77", SLURM_JOB_NAME="train")
        run.run_and_release = lambda arguments: signal.raise_signal(signal.SIGUSR1)

    arguments = ["run", str(experiment(tmp_path)), *filter(None, [setting])]
    assert mllm(tmp_path / "log", *arguments, before=before) == 138
    said = (tmp_path / "log").read_text().splitlines()
    assert said == [*([] if setting else ["mllm: job 77 is queued again"]), "mllm: stopped by SIGUSR1"]
    assert scontrol.exists() != bool(setting)


def test_a_job_is_queued_again_once(scontrol: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    wanted = requeued(lambda: True), requeued(lambda: True)
    with pytest.raises(SystemExit), wanted[0], wanted[1]:
        raise signals.Stopped(signal.SIGUSR1)
    assert scontrol.read_text() == "requeue 77\n"


def test_what_slurm_refuses_is_told(scontrol: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANSWER", "Requested operation is presently disabled")
    told = "SLURM did not queue job 5_3 again (Requested operation is presently disabled); submit it anew to go on"
    assert requeue("5_3") == told
    monkeypatch.setenv("PATH", "")
    assert "scontrol cannot be asked to queue job 5 again (FileNotFoundError)" in requeue("5")


@pytest.mark.parametrize(
    ("environment", "job"),
    [
        ({"JOB_ID": "12"}, "12"),
        ({"JOB_ID": "12", "ARRAY_JOB_ID": "10", "ARRAY_TASK_ID": "2"}, "10_2"),
        ({"JOB_ID": "12", "JOB_NAME": "interactive"}, ""),
        ({"JOB_ID": "; rm -r x"}, ""),
        ({}, ""),
    ],
)
def test_which_job_it_is(environment: dict[str, str], job: str) -> None:
    assert job_id({f"SLURM_{name}": value for name, value in environment.items()}) == job
