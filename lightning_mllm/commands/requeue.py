"""A job of SLURM that was told that it will be ended is queued again, once what it has trained is saved.

`sbatch --signal=USR1@120` sends the notice two minutes before the time is up; preemption sends what the partition says.
The job that SLURM starts again runs the same script, whose `mllm` goes on from the checkpoint.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lightning_mllm import signals

SECONDS = 30
"""For SLURM to answer."""
INTERACTIVE = ("bash", "interactive")
"""Names of jobs in which somebody works by hand."""


@contextmanager
def requeued(wanted: Callable[[], bool]) -> Iterator[None]:
    """Queues this job again where a notice (SIGUSR1, SIGUSR2) ends what is done within; rank 0 does it, once.

    Args:
        wanted: Whether the settings allow it.
    """
    try:
        yield
    except signals.Stopped as stopped:
        job = job_id()
        notice = stopped.number in signals.NOTICES and not stopped.requeued
        if notice and job and not rank_zero_only.rank and wanted():
            stopped.requeued = True
            print(f"mllm: {requeue(job)}", file=sys.stderr, flush=True)
        raise


def job_id(environment: Mapping[str, str] = os.environ) -> str:
    """As `scontrol` takes it; empty outside of SLURM, and in a job that SLURM cannot start again."""
    job, array, task = (environment.get(f"SLURM_{name}", "") for name in ("JOB_ID", "ARRAY_JOB_ID", "ARRAY_TASK_ID"))
    found = f"{array}_{task}" if array and task else job
    usable = found.replace("_", "").isdecimal() and environment.get("SLURM_JOB_NAME") not in INTERACTIVE
    return found if usable else ""


def requeue(job: str) -> str:
    """What became of it, in a sentence."""
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.CalledProcessError as error:
        said = " ".join((error.stderr or "").split()) or f"exit code {error.returncode}"
        return f"SLURM did not queue job {job} again ({said}); submit it anew to go on"
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"scontrol cannot be asked to queue job {job} again ({type(error).__name__}); submit it anew to go on"
    return f"job {job} is queued again"
