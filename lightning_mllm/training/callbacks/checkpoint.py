"""When a stage is checkpointed, and what is told about going on after a stop."""

from __future__ import annotations

import math
import re
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, Timer
from lightning.pytorch.trainer.states import TrainerFn

from lightning_mllm.collectives import cpu_group
from lightning_mllm.training.callbacks.disk_room import check_disk
from lightning_mllm.training.callbacks.ending import signal_name, tell
from lightning_mllm.training.checkpoints import Replaced, ShardedCheckpointIO, Values, newest
from lightning_mllm.training.checkpoints.finding import STEPS, number_of


class StageCheckpoint(Checkpoint):
    """Saves `checkpoints/step-N` in the run folder every few optimizer steps or minutes, and after the last step.

    The step that follows is taken while the checkpoint is written; the last few are kept, and an earlier one is removed
    when the new one is complete.

    The last one is also that at which the time is up (`trainer.max_time`) or a callback wants to stop: whoever wants it
    waits for the end of the optimizer step that has begun. Where the step is validated, it is saved after that: a run
    that ends in between takes the step again, so that each validation has its say in what a resumed run monitors. The
    Trainer calls this callback after all others.

    Args:
        every: Optimizer steps between two savings, 0 for none; or a time by the clock of rank 0: `90s`, `15m`, `2h`.
        folder: Where; None is `checkpoints` in the Trainer's `default_root_dir`.
        keep: How many checkpoints stay on the disk.
        resume: What the Trainer is told to go on from: all ranks choose it before the net is built.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self, every: int | str = 200, folder: str | None = None, keep: int = 2, resume: str | None = None
    ) -> None:
        self.every_n_steps, self.every_seconds = _interval(every)
        if keep < 1:
            raise ValueError(f"checkpoint_keep: found {keep}, expected at least 1")
        self.folder, self.keep, self.resume = folder, keep, resume
        self.path = Path()
        """The folder of checkpoints."""
        self.saved_step = 0
        """That of the newest checkpoint; 0 if there is none."""
        self._step = 0
        self._saved_at = 0.0
        self._group: dist.ProcessGroup | None = None
        self._stopping = False
        self._waits = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.path = Path(self.folder or Path(trainer.default_root_dir) / "checkpoints")
        self._agree(trainer, checkpoint_io(trainer))

    def _agree(self, trainer: Trainer, io: ShardedCheckpointIO) -> None:
        """All ranks go on from the same checkpoint, or none does.

        Raises:
            ValueError: Some ranks see no checkpoint, or none that is whole; by all ranks.
        """
        if trainer.world_size > 1:
            seen: list[bool] = [False] * trainer.world_size
            dist.all_gather_object(seen, self.resume is not None)
            if any(seen) != all(seen):
                has, has_none = seen.index(True), seen.index(False)
                raise ValueError(
                    f"{self.resume or self.path}: found a checkpoint on the disk of rank {has} and none on that of rank"
                    f" {has_none}, expected a folder that all nodes share"
                )
        if self.resume is not None:
            chosen = io.choose(self.resume)
            tell(trainer, f"{trainer.default_root_dir} goes on from {chosen.parent.name}/{chosen.name}")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Inside an accumulation window `global_step` stays: without this, the first micro-batch after a restart would
        # be followed by a checkpoint whose loader is ahead of its weights.
        self.saved_step = self._step = trainer.global_step
        self._saved_at = time.monotonic()
        self._stopping = self._waits = False
        self._group = cpu_group() if self.every_seconds else None
        if not trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue]
            check_disk(trainer, pl_module, self.path, self._copies(trainer))

    def _copies(self, trainer: Trainer) -> int:
        """Checkpoints that may be on the disk at once: those that are kept, and one that is being written."""
        if not (self.every_n_steps or self.every_seconds):
            return 0
        if self.every_seconds:
            return self.keep + 1
        left = trainer.estimated_stepping_batches - trainer.global_step
        return min(self.keep + 1, math.ceil(left / self.every_n_steps) + (trainer.global_step > 0))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        self._stop_after_a_step(trainer, batch_idx)
        checkpoint_io(trainer).check()
        step, last = trainer.global_step, self._step
        self._step = step
        if not self.is_on(trainer) or step == last:
            return
        if self._is_due(step) or step >= trainer.estimated_stepping_batches or trainer.should_stop:
            # Who wants to stop may have no time for a validation.
            self._waits = not trainer.should_stop and is_validated_next(trainer)
            if not self._waits:
                self.save(trainer)

    def _is_due(self, step: int) -> bool:
        if self.every_n_steps and step % self.every_n_steps == 0:
            return True
        if not self.every_seconds:
            return False
        due = torch.tensor(time.monotonic() - self._saved_at >= self.every_seconds)
        if self._group is not None:
            dist.broadcast(due, src=0, group=self._group)
        return bool(due)

    def is_on(self, trainer: Trainer) -> bool:
        """Whether anything is saved."""
        return bool(self.every_n_steps or self.every_seconds) and not trainer.fast_dev_run  # pyright: ignore

    def save(self, trainer: Trainer) -> None:
        """Saves the optimizer step that is over; all ranks call it."""
        step = trainer.global_step
        trainer.save_checkpoint(
            self.path / f"step-{step}", weights_only=False, storage_options=Replaced(STEPS, self.keep)
        )
        self.saved_step, self._saved_at, self._waits = step, time.monotonic(), False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._stop_after_a_step(trainer, trainer.fit_loop.epoch_loop.batch_idx)
            if self._waits:
                self.save(trainer)

    def _stop_after_a_step(self, trainer: Trainer, batch_idx: int) -> None:
        """Keeps a wish to stop until an optimizer step ends: what was learned of half a step would be lost."""
        self._stopping = self._stopping or trainer.should_stop
        if self._stopping:
            trainer.should_stop = (batch_idx + 1) % trainer.accumulate_grad_batches == 0

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: Values) -> None:
        # A Timer counts the time of the runs before too: one whose time was up could never go on.
        for each in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
            if isinstance(each, Timer):
                checkpoint["callbacks"].pop(each.state_key, None)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        checkpoint_io(trainer).wait()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        try:
            checkpoint_io(trainer).wait()
        except (OSError, ValueError) as error:
            tell(trainer, str(error), error=True)
        name = signal_name(exception)
        if not name or trainer.state.fn != TrainerFn.FITTING:
            return
        told = f"{trainer.default_root_dir}: {name} ended the training in step {trainer.global_step + 1}"
        tell(trainer, f"{told}; {how_to_go_on(trainer)}", error=True)


def _interval(every: int | str) -> tuple[int, float]:
    """Optimizer steps and seconds, one of which is 0."""
    if isinstance(every, int) and every >= 0:
        return every, 0.0
    time_of = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", str(every))
    if time_of is None or float(time_of[1]) == 0:
        raise ValueError(
            f"checkpoint_every: found {every!r}, expected optimizer steps such as 200 or a time such as 90s, 15m or 2h"
        )
    return 0, float(time_of[1]) * {"s": 1, "m": 60, "h": 3600}[time_of[2]]


def checkpoint_io(trainer: Trainer) -> ShardedCheckpointIO:
    """The Trainer's, which is made if it has another one."""
    io = trainer.strategy.checkpoint_io
    if not isinstance(io, ShardedCheckpointIO):
        io = trainer.strategy.checkpoint_io = ShardedCheckpointIO()
    return io


def is_validated_next(trainer: Trainer) -> bool:
    """Whether the Trainer validates behind the micro-batch that has just been learned, and all ranks know it: not where
    an interval of time says when.
    """
    loop, fetcher = trainer.fit_loop.epoch_loop, trainer.fit_loop._data_fetcher
    if fetcher is None or trainer._val_check_time_interval is not None:  # pyright: ignore[reportAttributeAccessIssue]
        return False
    return loop._should_check_val_fx(fetcher) and not loop.val_loop.skip


def how_to_go_on(trainer: Trainer) -> str:
    """What the same command will do, in words."""
    callbacks: list[Any] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    checkpoint_io(trainer).wait()
    for each in callbacks:
        if isinstance(each, StageCheckpoint) and each.saved_step:
            # One that could not be written is not there; one that was passed over, for it is damaged, may be.
            own = each.path / STEPS.replace("*", str(each.saved_step))
            if (last := own if own.is_dir() else newest(each.path)) is not None:
                return f"the same command goes on after step {number_of(last.name)}, from {last}"
    return "there is no checkpoint, and the same command begins anew"
