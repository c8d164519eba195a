"""A training that a signal ends: the optimizer step in progress is finished, all ranks save it together and leave.

`signals.py` notes a signal in the rank that receives it. The ranks tell one another with the sums that they reduce once
an optimizer step (`step_row.reduced`), so that all of them leave behind the same step, and no step waits for more.
"""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.trainer.states import TrainerFn

from lightning_mllm import signals
from lightning_mllm.collectives import all_reduce
from lightning_mllm.training.callbacks.checkpoint import StageCheckpoint, checkpoint_io, how_to_go_on, is_validated_next
from lightning_mllm.training.callbacks.ending import tell
from lightning_mllm.training.checkpoints import Values


class StageSignals(Checkpoint):
    """Ends a training by a signal, behind an optimizer step, with a checkpoint of that step.

    A validation that is due or going on is left out; the run that goes on from there begins with it. Behind the last
    step a stage is finished all the same, and `signals.release` ends the process then.

    Lightning's own handlers are not used: one of them waits for all ranks although one alone has been told, another
    one writes checkpoints of its own. The Trainer calls this callback after all others.
    """

    def __init__(self) -> None:
        self.validates = False
        """Whether the step that is saved now is still to be validated."""
        self._validates_first = False
        """Whether that from which this run goes on is."""
        self._ranks_agree = False
        """Whether all ranks have as many batches in this validation, so that they can ask one another behind each."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        own: Any = trainer
        own._signal_connector = SimpleNamespace(
            received_sigterm=False, register_signal_handlers=_nothing, teardown=_nothing
        )
        # A broadcast before each micro-batch, for which the host waits.
        own.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        signals.agree(0)
        signals.hold()
        if self._validates_first:
            self._validates_first = False
            _validate(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        if number := signals.agreed():
            self.validates = is_validated_next(trainer)
            raise signals.stopped(number)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._ranks_agree = False
        if _is_within_training(trainer):
            counts: Any = trainer.num_val_batches
            own = float(sum(counts) if isinstance(counts, list) else counts)
            self._ranks_agree = _most(trainer, own) == -_most(trainer, -own)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._ranks_agree and _is_within_training(trainer) and (number := _heard(trainer)):
            self.validates = True
            raise signals.stopped(number)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Who leaves behind the last step is not for one rank to say.
        if number := _heard(trainer):
            signals.note(number)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if not isinstance(exception, signals.Stopped):
            return
        launcher: Any = trainer.strategy.launcher
        if exception.number != signals.agreed():
            # Before training, or in a test: ranks that this process has started would wait for it.
            if isinstance(launcher, _SubprocessScriptLauncher):
                launcher.kill(exception.number)
            return
        saving = next((each for each in trainer.callbacks if isinstance(each, StageCheckpoint)), None)  # pyright: ignore
        if saving is not None and saving.is_on(trainer) and saving.saved_step < trainer.global_step:
            try:
                saving.save(trainer)
                # A rank that left before the files are whole would take the others with it.
                checkpoint_io(trainer).wait()
            except (OSError, ValueError) as error:  # the signal is what ends the run
                tell(trainer, str(error), error=True)
        told = f"{trainer.default_root_dir}: {exception.name} ended the training after step {trainer.global_step}"
        tell(trainer, f"{told}; {how_to_go_on(trainer)}", error=True)
        exception.told = True
        started = getattr(launcher, "procs", [])
        if trainer.strategy.broadcast(os.getpid() if started else 0) == os.getppid():
            # The code of the process that started this rank is the run's. Another one than 0 here would have Lightning
            # kill that process, perhaps before its loggers have sent what they hold.
            exception.code = 0

    def state_dict(self) -> Values:
        return {"validates_first": self.validates}

    def load_state_dict(self, state_dict: Values) -> None:
        self._validates_first = state_dict["validates_first"]


def _nothing() -> None:
    """What Lightning's handlers are replaced by."""


def _is_within_training(trainer: Trainer) -> bool:
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking


def _most(trainer: Trainer, value: float) -> float:
    """The largest of all ranks."""
    return float(all_reduce(torch.tensor([value], device=trainer.strategy.root_device), "max"))


def _heard(trainer: Trainer) -> int:
    """What one of the ranks has received, now known to all of them; 0 where none has."""
    own = signals.received()
    last = len(signals.SIGNALS)
    number = last - int(_most(trainer, last - signals.SIGNALS.index(own) if own else 0))
    signals.agree(signals.SIGNALS[number] if number < last else 0)
    return signals.agreed()


def _validate(trainer: Trainer) -> None:
    """As behind the step that was the last one of the run before."""
    own: Any = trainer
    loop = own.fit_loop.epoch_loop.val_loop
    loop.restarting = False
    loop.update_restart_stage()
    own.validating = True
    loop.run()
    own.training = True
