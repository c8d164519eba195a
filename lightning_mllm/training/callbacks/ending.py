"""Why a training ended, and what is told about it."""

from __future__ import annotations

import sys
from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.utilities.exceptions import SIGTERMException

STEPS = "steps"
"""All optimizer steps were taken."""
MAX_TIME = "max_time"
FAST_DEV_RUN = "fast_dev_run"


def ended_by(trainer: Trainer) -> str:
    """What ended the training: `STEPS`, `MAX_TIME`, `FAST_DEV_RUN`, or the callback that wanted it to stop."""
    if trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue]
        return FAST_DEV_RUN
    if trainer.global_step >= trainer.estimated_stepping_batches:
        return STEPS
    callbacks: list[Any] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    stopping = next((each for each in callbacks if isinstance(each, EarlyStopping) and _has_stopped(each)), None)
    if stopping is not None:
        return f"EarlyStopping of {stopping.monitor}"
    timers = [each.time_remaining() for each in callbacks if isinstance(each, Timer)]
    if any(left is not None and left <= 0 for left in timers):
        return MAX_TIME
    return "trainer.should_stop"


def _has_stopped(callback: EarlyStopping) -> bool:
    return bool(callback.stopping_reason.value)


def is_complete(ended: str) -> bool:
    """Whether a stage that ended so is done: it took its steps, or a callback decided that it had learned enough."""
    return ended not in (MAX_TIME, FAST_DEV_RUN)


def tell(trainer: Trainer, sentence: str, error: bool = False) -> None:
    """One line, by rank 0."""
    if trainer.is_global_zero:
        print(sentence, file=sys.stderr if error else sys.stdout, flush=True)


def signal_name(exception: BaseException) -> str:
    """Of the signal behind an exception; empty where none is."""
    return {KeyboardInterrupt: "SIGINT", SIGTERMException: "SIGTERM"}.get(type(exception), "")
