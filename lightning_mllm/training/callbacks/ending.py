"""Why a training ended, and what is told about it."""

from __future__ import annotations

import sys
from typing import Any, Literal, NamedTuple

from lightning import Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.utilities.exceptions import SIGTERMException


class Ending(NamedTuple):
    """What ended a training."""

    reason: Literal["steps", "max_time", "fast_dev_run", "EarlyStopping", "trainer.should_stop"]
    """"steps": all optimizer steps were taken. "trainer.should_stop": some other callback wanted it to stop."""
    monitor: str = ""
    """What EarlyStopping looked at."""

    @property
    def is_complete(self) -> bool:
        """Whether the stage is done: it took its steps, or a callback decided that it had learned enough."""
        return self.reason not in ("max_time", "fast_dev_run")

    def __str__(self) -> str:
        return f"{self.reason} of {self.monitor}" if self.monitor else self.reason


def ending_of(trainer: Trainer) -> Ending:
    """What ended the training of this Trainer.

    Raises:
        ValueError: EarlyStopping did, because its score is no number: a stage that has learned enough is another thing.
    """
    if trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue]
        return Ending("fast_dev_run")
    if trainer.global_step >= trainer.estimated_stepping_batches:
        return Ending("steps")
    callbacks: list[Any] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    stopping = next((each for each in callbacks if isinstance(each, EarlyStopping) and _has_stopped(each)), None)
    if stopping is not None:
        if stopping.stopping_reason == EarlyStoppingReason.NON_FINITE_METRIC:
            raise ValueError(
                f"{trainer.default_root_dir}: found {stopping.monitor} = {trainer.callback_metrics[stopping.monitor]:g}"
                f" after step {trainer.global_step}, expected a finite number, so the stage is not done;"
                " EarlyStopping.check_finite: false goes on without one"
            )
        return Ending("EarlyStopping", stopping.monitor)
    timers = [each.time_remaining() for each in callbacks if isinstance(each, Timer)]
    if any(left is not None and left <= 0 for left in timers):
        return Ending("max_time")
    return Ending("trainer.should_stop")


def _has_stopped(callback: EarlyStopping) -> bool:
    return bool(callback.stopping_reason.value)


def tell(trainer: Trainer, sentence: str, error: bool = False) -> None:
    """One line, by rank 0."""
    if trainer.is_global_zero:
        print(sentence, file=sys.stderr if error else sys.stdout, flush=True)


def signal_name(exception: BaseException) -> str:
    """Of the signal behind an exception; empty where none is."""
    return {KeyboardInterrupt: "SIGINT", SIGTERMException: "SIGTERM"}.get(type(exception), "")
