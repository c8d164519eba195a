"""Runs of `mllm` in forked processes, to which signals are sent at chosen moments."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from lightning_mllm.cli import main
from tests.commands.conftest import TOY

SECONDS = 60
STAGE = (
    f"--config={TOY}",
    "--stage.epochs=null",
    "--stage.steps=4",
    "--stage.global_batch=6",
    "--hardware.micro_batch=2",
    "--model.language.dropout=0.3",
    "--trainer.enable_progress_bar=false",
)
"""Twelve micro-batches, three an optimizer step."""


def forked(work: Callable[[], object], log: Path) -> int:
    """The id of a process that does `work`, with its output in `log`; it ends as a program does."""
    gc.collect()
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    # What earlier tests left behind belongs to threads that a forked process has not: never collect it here.
    gc.freeze()
    code = 1
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)
        work()
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        os._exit(code)


def code_of(pid: int, seconds: float = SECONDS) -> int:
    """The exit code of a forked process, minus the signal that ended it; one that does not end is killed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError(f"process {pid} did not end in {seconds} s")


def mllm(log: Path, *arguments: str, before: Callable[[], object] = lambda: None) -> int:
    """The exit code of a command, in a process that `before` has prepared."""

    def work() -> None:
        before()
        main(arguments)

    return code_of(forked(work, log))
