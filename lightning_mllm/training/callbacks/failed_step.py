"""A training that an error ends: the samples it was on are named, and the last whole optimizer step is saved.

    in the loader, forward, backward       the weights are those of the step before, which is saved as it was then: what
    or before the optimizer's update       loops, loader and random states were at its end is kept until the next one
    inside the optimizer's update          nothing is saved: a part of the weights may have moved
    in a callback behind the update        the step is whole, and saved
    in a validation                        the step before it is saved, and the run that goes on begins with it
    behind the last step                   no samples are named: the error is that of what the stage hands over

The run that goes on takes the failed step again, from the same samples. With several ranks a step is saved only where
all of them raise the same error (`AgreedError`): the others would wait for one that is gone.
"""

from __future__ import annotations

import random
from dataclasses import is_dataclass
from itertools import zip_longest
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from lightning_mllm.collectives import AgreedError
from lightning_mllm.contracts import Batch
from lightning_mllm.training.callbacks.averaging import Averaging
from lightning_mllm.training.callbacks.checkpoint import StageCheckpoint, checkpoint_io, how_to_go_on, is_validated_next
from lightning_mllm.training.callbacks.signals import StageSignals
from lightning_mllm.training.checkpoints import Values
from lightning_mllm.training.module import MultimodalModule
from lightning_mllm.training.skipped_steps import named_samples
from lightning_mllm.weights.disk import NotWritten

T = TypeVar("T")


class _End(NamedTuple):
    """What the end of an optimizer step is known by, beside weights, moments and rates."""

    step: int
    loops: Values
    counts: Values
    """Of the data module, where there is one rank."""
    skipped: dict[str, int]
    random: tuple[object, ...]


class FailedStep(Checkpoint):
    """Names the samples of the micro-batch in which an error was raised, and saves the last whole optimizer step.

    What it says is added to the error (`BaseException.add_note`). The Trainer calls it after all other callbacks.
    """

    def __init__(self) -> None:
        self._end: _End | None = None
        self._ids: tuple[int, list[str]] = (-1, [])
        """Number of the latest micro-batch, and the ids of its samples."""
        self._rewound: _End | None = None
        self._trains = False
        self._learns = False
        """Whether a micro-batch may still follow."""

    # ---- while all is well -------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end, self._rewound, self._trains, self._learns = None, None, True, True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The whole training is one epoch; what follows writes the weights.
        self._learns = False

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._trains = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        self._ids = batch_idx, batch.ids

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self._end = _end(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._end is not None and trainer.state.fn == TrainerFn.FITTING and self._end.step == trainer.global_step:
            self._end = _end(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: Values) -> None:
        if (end := self._rewound) is not None:
            checkpoint["loops"]["fit_loop"] |= end.loops
            own: Any = trainer
            if end.counts and (name := type(own.datamodule).__qualname__) in checkpoint:
                checkpoint[name] = end.counts

    # ---- where something fails ---------------------------------------------------------------------------------

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if not self._trains or trainer.state.fn != TrainerFn.FITTING or not isinstance(exception, Exception):
            return
        for tell in (self._told, _lost_worker, lambda trainer: self._kept(trainer, pl_module, exception)):
            try:
                told = tell(trainer)
            except Exception as error:  # the first one is what matters
                told = f"{type(error).__name__}: {error}"
            if told:
                exception.add_note(told)

    def _told(self, trainer: Trainer) -> str:
        """Where it failed; empty where all is learned."""
        rank = f"rank {trainer.global_rank}, " if trainer.world_size > 1 else ""
        counts: Any = trainer.fit_loop.epoch_loop.batch_progress.current
        if trainer.validating:
            return f"{rank}in the validation after optimizer step {trainer.global_step}"
        if not self._learns:
            return ""
        # Where none has begun, it is being read.
        reading = getattr(trainer.train_dataloader, "reading", counts.ready)
        number = counts.ready - 1 if counts.ready > counts.completed else reading
        accumulation = trainer.accumulate_grad_batches
        of = f", micro-batch {number % accumulation + 1} of {accumulation}" if accumulation > 1 else ""
        known = named_samples(trainer, number)
        ids = self._ids[1] if self._ids[0] == number else []
        names = [_name(facts, id) for facts, id in zip_longest(known, ids)]
        return f"{rank}in optimizer step {number // accumulation + 1}{of}, samples: {', '.join(names)}"

    def _kept(self, trainer: Trainer, module: LightningModule, exception: Exception) -> str:
        """From where the run goes on."""
        told = ""
        if _may_save(trainer, exception) and not isinstance(exception, NotWritten):
            try:
                self._save(trainer, cast(MultimodalModule, module))
            except Exception as error:
                told = f"; step {trainer.global_step} could not be saved: {error}"
            # A rank that left before the files are whole would take the others with it.
            trainer.strategy.barrier("FailedStep")
        return f"{trainer.default_root_dir}: {how_to_go_on(trainer)}{told}"

    def _save(self, trainer: Trainer, module: MultimodalModule) -> None:
        saving = _first(trainer, StageCheckpoint)
        step, end = trainer.global_step, self._end
        # One that is being written is of an earlier step, or of this one.
        checkpoint_io(trainer).wait()
        if saving is None or not saving.is_on(trainer) or saving.saved_step >= step:
            return
        rates: Any = trainer.lr_scheduler_configs
        if any(each.scheduler.last_epoch != step for each in rates):
            raise ValueError("the error came between its update and its schedule")
        module.zero_grad(set_to_none=True)
        if trainer.validating or end is None or end.step != step:
            # The step is whole; what was to follow it is made up for.
            for each in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
                if isinstance(each, Averaging) and not trainer.validating:
                    each.on_train_batch_end(trainer, module, None, None, 0)
            if (signals := _first(trainer, StageSignals)) is not None:
                signals.validates = trainer.validating or is_validated_next(trainer)
        elif _updates(trainer) > step - end.skipped["total"]:
            raise ValueError("the error came inside the optimizer's update, and a part of the weights has moved")
        else:
            self._rewound = end
            module.skipped.load_state_dict(end.skipped)
            _write_random(end.random)
        saving.save(trainer)
        checkpoint_io(trainer).wait()


def _end(trainer: Trainer, module: LightningModule) -> _End:
    own: Any = trainer
    counts = own.datamodule.state_dict() if own.datamodule is not None and trainer.world_size == 1 else {}
    return _End(
        step=trainer.global_step,
        loops=_loops(trainer),
        counts=counts,
        skipped=cast(MultimodalModule, module).skipped.state_dict(),
        random=_read_random(trainer.strategy.root_device),
    )


def _loops(trainer: Trainer) -> Values:
    """What micro-batches change in the state of Lightning's loops, and where the loader is; all of it takes three times
    as long."""
    loop = trainer.fit_loop.epoch_loop
    optimization = loop.automatic_optimization
    return {
        "state_dict": trainer.fit_loop.on_save_checkpoint(),
        "epoch_loop.state_dict": loop.on_save_checkpoint(),
        "epoch_loop.batch_progress": _counts(loop.batch_progress),
        "epoch_loop.automatic_optimization.optim_progress": _counts(optimization.optim_progress),
    }


def _counts(progress: object) -> Any:
    """As `progress.state_dict()`, in a fifth of the time."""
    if not is_dataclass(progress):
        return progress
    return {name: _counts(each) for name, each in vars(progress).items()}


def _lost_worker(trainer: Trainer) -> str:
    """torch tells of a worker that has died wherever the process is."""
    return getattr(trainer.train_dataloader, "lost_worker", str)()


def _may_save(trainer: Trainer, exception: Exception) -> bool:
    """Whether this rank can save without the others, or all of them are here."""
    return trainer.world_size == 1 or isinstance(exception, AgreedError)


def _updates(trainer: Trainer) -> int:
    """How often the optimizer has updated, or begun to update, the parameter that it has updated most often."""
    states = [state for each in trainer.optimizers for state in each.state.values()]
    return max((int(state["step"]) for state in states if "step" in state), default=0)


def _read_random(device: torch.device) -> tuple[object, ...]:
    cuda = (device, torch.cuda.get_rng_state(device)) if device.type == "cuda" else None
    return torch.get_rng_state(), np.random.get_state(), random.getstate(), cuda


def _write_random(state: tuple[Any, ...]) -> None:
    own, numpy, python, cuda = state
    torch.set_rng_state(own)
    np.random.set_state(numpy)
    random.setstate(python)
    if cuda is not None:
        torch.cuda.set_rng_state(cuda[1], cuda[0])


def _first(trainer: Trainer, kind: type[T]) -> T | None:
    return next((each for each in trainer.callbacks if isinstance(each, kind)), None)  # pyright: ignore


def _name(facts: dict[str, Any] | None, id: str | None) -> str:
    found = facts or {}
    where = found.get("where") or (f"{found['source']}[{found['index']}]" if "source" in found else "")
    return f"{id!r} ({where})" if id is not None and where else where or repr(id)
