"""Checkpoints for going on after a stop: one file, replaced in one move, never half written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import Checkpoint, Timer
from lightning.pytorch.trainer.states import TrainerFn

from lightning_mllm.training.callbacks.ending import signal_name, tell


class SafeCheckpointIO(CheckpointIO):
    """Writes beside the target, flushes to the disk and renames; reads tensors and plain values only.

    Lightning's own writes in TMPDIR and moves, which is a copy over the old file where that is another file system.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.part")
        try:
            with open(beside, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """The checkpoint on the CPU.

        Raises:
            ValueError: The file is missing, damaged, or holds something other than tensors and plain values.
        """
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"{path}: found no checkpoint, expected a file")
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            reason = str(error).strip().split("\n")[0]
            raise ValueError(
                f"{path}: cannot read the checkpoint ({type(error).__name__}: {reason}), expected tensors and plain"
                " values; delete it to start the stage anew"
            ) from error

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


class StageCheckpoint(Checkpoint):
    """Saves `checkpoints/last.ckpt` in the run folder every `every_n_steps` optimizer steps, and after the last one.

    The last one is also that at which the time is up (`trainer.max_time`) or a callback wants to stop: whoever wants it
    waits for the end of the optimizer step that has begun. Where the step is validated, it is saved after that: a run
    that ends in between takes the step again, so that each validation has its say in what a resumed run monitors. The
    Trainer calls this callback after all others.

    Args:
        every_n_steps: Optimizer steps between two savings; 0 saves nothing.
        folder: Where; None is `checkpoints` in the Trainer's `default_root_dir`.
    """

    def __init__(self, every_n_steps: int = 200, folder: str | None = None) -> None:
        if every_n_steps < 0:
            raise ValueError(f"every_n_steps: found {every_n_steps}, expected at least 0")
        self.every_n_steps = every_n_steps
        self.folder = folder
        self.path = Path()
        self.saved_step = 0
        """That of the file; 0 if there is none."""
        self._stopping = False
        self._waits = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.path = Path(self.folder or Path(trainer.default_root_dir) / "checkpoints") / "last.ckpt"
        if type(trainer.strategy.checkpoint_io) is not SafeCheckpointIO:
            trainer.strategy.checkpoint_io = SafeCheckpointIO()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Inside an accumulation window `global_step` stays at the last saved step: without this, the first micro-batch
        # after a restart would replace the file by one whose loader is ahead of its weights.
        self.saved_step = trainer.global_step
        self._stopping = self._waits = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._stop_after_a_step(trainer, batch_idx)
        step = trainer.global_step
        if not self.every_n_steps or step == self.saved_step or trainer.fast_dev_run:  # pyright: ignore
            return
        if step % self.every_n_steps == 0 or step >= trainer.estimated_stepping_batches or trainer.should_stop:
            # Who wants to stop may have no time for a validation.
            self._waits = not trainer.should_stop and _is_validated_next(trainer)
            if not self._waits:
                self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        self.saved_step, self._waits = trainer.global_step, False
        trainer.save_checkpoint(self.path, weights_only=False)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._stop_after_a_step(trainer, trainer.fit_loop.epoch_loop.batch_idx)
            if self._waits:
                self._save(trainer)

    def _stop_after_a_step(self, trainer: Trainer, batch_idx: int) -> None:
        """Keeps a wish to stop until an optimizer step ends: what was learned of half a step would be lost."""
        self._stopping = self._stopping or trainer.should_stop
        if self._stopping:
            trainer.should_stop = (batch_idx + 1) % trainer.accumulate_grad_batches == 0

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        # A Timer counts the time of the runs before too: one whose time was up could never go on.
        for each in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
            if isinstance(each, Timer):
                checkpoint["callbacks"].pop(each.state_key, None)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        name = signal_name(exception)
        if not name or trainer.state.fn != TrainerFn.FITTING:
            return
        told = f"{trainer.default_root_dir}: {name} ended the training in step {trainer.global_step + 1}"
        tell(trainer, f"{told}; {how_to_go_on(trainer)}", error=True)


def _is_validated_next(trainer: Trainer) -> bool:
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
    for each in callbacks:
        if isinstance(each, StageCheckpoint) and each.saved_step and each.path.is_file():
            return f"the same command goes on after step {each.saved_step}, from {each.path}"
    return "there is no checkpoint, and the same command begins anew"
