"""Averages of the weights over the steps of a stage, beside the weights that training goes on with.

EMA     average <- decay * average + (1 - decay) * weights        Polyak and Juditsky 1992, with a forgetting factor
SWA     the mean of the weights since a step                      arXiv 1803.05407
LAWA    the mean of the latest few snapshots                      arXiv 2209.14981

A step that was skipped (training/skipped_steps.py) changed no weights: an update is due again once another step did.

Every rank averages the shards of the trained parameters that it holds, in float32, and asks no other rank. The average
replaces the weights in validation, in tests and in the stage's weights; checkpoints hold both, and a stage begun on
eight ranks may end on one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from lightning_mllm.training.checkpoints import TENSORS, SavedTensors, Values
from lightning_mllm.training.module import MultimodalModule
from lightning_mllm.training.sharding import shard_like, to_local

KEY = "average"
"""Where in a checkpoint the average is."""


class Averaging(Callback):
    """What all averages share: when it is updated, and when it replaces the weights.

    Args:
        update_every_n_steps: Optimizer steps between two updates, counted from the start.
        update_starting_at_step: Updates begin after that step. Below 1: a fraction of all optimizer steps.
        device: Where the average is held, "cpu" to spare the GPU's memory; None is where the weights are.
        use_buffers: Whether floating-point buffers of modules that train are averaged too; otherwise they are those of
            training.

    Raises:
        ValueError: A number is out of range.
    """

    def __init__(
        self,
        update_every_n_steps: int = 1,
        update_starting_at_step: float = 0.0,
        device: str | None = None,
        use_buffers: bool = False,
    ) -> None:
        self._expect(update_every_n_steps >= 1, "update_every_n_steps", update_every_n_steps, "at least 1")
        start = update_starting_at_step
        fine = 0 <= start < 1 or (start >= 1 and start == int(start))
        self._expect(fine, "update_starting_at_step", start, "a fraction below 1 or a number of steps")
        self.update_every_n_steps = update_every_n_steps
        self.update_starting_at_step = start
        self.device = device
        self.use_buffers = use_buffers
        self.updates = 0
        """How many there were."""
        self.held: list[dict[str, Tensor]] = []
        """This rank's shards; the average is the mean of the entries, and there is none before the first update."""
        self._raw: dict[str, Tensor] = {}
        self._start = 0
        self._step = self._taken = 0
        """Of the last micro-batch; and the steps that had changed weights at the last update."""

    def _expect(self, fine: bool, name: str, found: object, expected: str) -> None:
        if not fine:
            raise ValueError(f"{type(self).__name__}.{name}: found {found}, expected {expected}")

    @property
    def settings(self) -> Values:
        """What decides the average: all but where it is held."""
        names = ("update_every_n_steps", "update_starting_at_step", "use_buffers")
        return {"kind": type(self).__name__, **{name: getattr(self, name) for name in names}}

    # ---- the average -------------------------------------------------------------------------------------------

    def new_weight(self) -> float:
        """The coefficient of the weights in the next update, from 0 to 1; the average so far has the rest."""
        raise AssertionError(f"{type(self).__name__} has no new_weight")

    @torch.no_grad()
    def update(self, weights: Mapping[str, Tensor]) -> None:
        """Takes the present weights into the average, the first ones as they are."""
        if not self.held:
            self.held = [{name: self._copied(tensor, _precise(tensor)) for name, tensor in weights.items()}]
        else:
            new_weight = self.new_weight()
            for name, average in self.held[0].items():
                average.lerp_(weights[name].to(average), new_weight)
        self.updates += 1

    def mean(self, name: str) -> Tensor:
        """The average of one tensor, in float32 or better."""
        first, *others = (each[name] for each in self.held)
        total = first.to(_precise(first))
        for other in others:
            total = total + other
        return total / len(self.held)

    def _copied(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        return tensor.to(self.device or tensor.device, dtype, copy=True)

    def _tensors(self, module: LightningModule) -> dict[str, Tensor]:
        """What is averaged, sharing memory with the net; DTensors where parameters are sharded.

        Contract: goes through `state_dict`, which brings FSDP2's parameters back into shards. After a forward pass
        without a backward one the outermost unit is still gathered, and what is written to its shards would be lost.
        """
        net = cast(MultimodalModule, module)
        tensors = net.checkpoint_tensors()
        names = tensors if self.use_buffers else net.trained
        return {name: each for name, each in tensors.items() if name in names and each.is_floating_point()}

    # ---- when --------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        several = [type(each).__name__ for each in _all(trainer)]
        if len(several) > 1:
            raise ValueError(f"trainer.callbacks: found the averages {', '.join(several)}, expected one")
        total = cast(MultimodalModule, pl_module).optimizer_steps()
        start = self.update_starting_at_step
        self._start = math.ceil(start * total) if start < 1 else int(start)
        first = self._start + self.update_every_n_steps
        if first > total:
            raise ValueError(
                f"trainer.callbacks: {type(self).__name__} averages from step {first} on, expected one of the {total}"
                " steps of the stage"
            )
        self.updates, self.held, self._taken = 0, [], 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        # Inside an accumulation window `global_step` stays.
        step, last = trainer.global_step, self._step
        self._step = step
        taken = step - cast(MultimodalModule, pl_module).skipped.total
        due = step > max(last, self._start) and (step - self._start) % self.update_every_n_steps == 0
        if due and taken > self._taken:
            self._taken = taken
            self.update({name: to_local(tensor) for name, tensor in self._tensors(pl_module).items()})

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.swap_in(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.swap_out(pl_module)

    on_test_start = on_predict_start = on_validation_start
    on_test_end = on_predict_end = on_validation_end

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.swap_out(pl_module)

    @torch.no_grad()
    def swap_in(self, module: LightningModule) -> None:
        """Puts the average into the net and the weights aside; nothing before the first update."""
        if not self.held or self._raw:
            return
        for name, tensor in self._tensors(module).items():
            shard = to_local(tensor)
            self._raw[name] = self._copied(shard, shard.dtype)
            shard.copy_(self.mean(name))

    @torch.no_grad()
    def swap_out(self, module: LightningModule) -> None:
        """Puts the weights back, to the bit; nothing where the average is not in the net."""
        if self._raw:
            for name, tensor in self._tensors(module).items():
                to_local(tensor).copy_(self._raw[name])
            self._raw = {}

    # ---- what is kept ------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: Values) -> None:
        if self._raw:
            raise ValueError(
                f"{type(self).__name__}: found a checkpoint being saved while the average is in the net, expected it"
                " after the validation"
            )
        tensors = self._tensors(pl_module)
        checkpoint.setdefault(TENSORS, {}).update(
            {
                _saved_name(number, name): shard_like(tensors[name], shard)
                for number, each in enumerate(self.held)
                for name, shard in each.items()
            }
        )
        counts = {"updates": self.updates, "taken": self._taken, "held": len(self.held)}
        checkpoint[KEY] = {"settings": self.settings, **counts}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: Values) -> None:
        kept, own = checkpoint.get(KEY), self.settings
        if trainer.state.fn == TrainerFn.FITTING:
            found = {} if kept is None else kept["settings"]
            for name in own:
                if found.get(name) != own[name]:
                    raise ValueError(
                        f"the checkpoint was written with {_named(name, found)} for an average, expected"
                        f" {_named(name, own)} as configured now; another run folder starts the stage anew"
                    )
        if kept is None:
            return
        saved: SavedTensors = checkpoint[TENSORS]
        tensors, targets = self._tensors(pl_module), {}
        self.updates, self._taken, self.held = kept["updates"], kept.get("taken", 0), []
        for number in range(kept["held"]):
            if odd := sorted(set(saved.named(_saved_name(number))) ^ set(tensors)):
                raise ValueError(f"the checkpoint's average and the net differ in {odd[0]!r}, expected the same names")
            dtypes = {name: saved.dtype(_saved_name(number, name)) for name in tensors}
            self.held.append({name: self._copied(to_local(each), dtypes[name]) for name, each in tensors.items()})
            targets |= {_saved_name(number, n): shard_like(tensors[n], each) for n, each in self.held[-1].items()}
        saved.read_into(targets)


class EMA(Averaging):
    """The exponential moving average; arguments that Lightning's EMAWeightAveraging has too mean the same.

    (Lightning's is updated after steps 1, n + 1, 2n + 1, ..., this one after steps n, 2n, 3n, ...)

    Args:
        decay: The coefficient of the average so far in an update.
        warmup: Whether the first updates count for more: the decay is min(decay, (1 + n) / (10 + n)), as in
            TensorFlow's ExponentialMovingAverage.
        update_every_n_steps, update_starting_at_step, device, use_buffers: As in Averaging.

    Raises:
        ValueError: A number is out of range.
    """

    def __init__(
        self,
        decay: float = 0.999,
        warmup: bool = False,
        update_every_n_steps: int = 1,
        update_starting_at_step: float = 0.0,
        device: str | None = None,
        use_buffers: bool = False,
    ) -> None:
        super().__init__(update_every_n_steps, update_starting_at_step, device, use_buffers)
        self._expect(0 <= decay < 1, "decay", decay, "a number from 0 up to, not including, 1")
        self.decay = decay
        self.warmup = warmup

    @property
    def settings(self) -> Values:
        return {**super().settings, "decay": self.decay, "warmup": self.warmup}

    def new_weight(self) -> float:
        return 1 - (min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.warmup else self.decay)


class SWA(Averaging):
    """The mean of the weights of the last part of a stage, by default of its last quarter.

    Args:
        update_every_n_steps, update_starting_at_step, device, use_buffers: As in Averaging.
    """

    def __init__(
        self,
        update_every_n_steps: int = 1,
        update_starting_at_step: float = 0.75,
        device: str | None = None,
        use_buffers: bool = False,
    ) -> None:
        super().__init__(update_every_n_steps, update_starting_at_step, device, use_buffers)

    def new_weight(self) -> float:
        return 1 / (self.updates + 1)


class LAWA(Averaging):
    """The mean of the latest `snapshots` weights, each `update_every_n_steps` steps after the one before.

    Holds as many copies of the trained parameters, in their own dtype.

    Args:
        snapshots: How many.
        update_every_n_steps, update_starting_at_step, device, use_buffers: As in Averaging.

    Raises:
        ValueError: A number is out of range.
    """

    def __init__(
        self,
        snapshots: int = 5,
        update_every_n_steps: int = 100,
        update_starting_at_step: float = 0.0,
        device: str | None = None,
        use_buffers: bool = False,
    ) -> None:
        super().__init__(update_every_n_steps, update_starting_at_step, device, use_buffers)
        self._expect(snapshots >= 1, "snapshots", snapshots, "at least 1")
        self.snapshots = snapshots

    @property
    def settings(self) -> Values:
        return {**super().settings, "snapshots": self.snapshots}

    @torch.no_grad()
    def update(self, weights: Mapping[str, Tensor]) -> None:
        self.held = self.held[1:] if len(self.held) == self.snapshots else self.held
        self.held.append({name: self._copied(tensor, tensor.dtype) for name, tensor in weights.items()})
        self.updates += 1


@contextmanager
def averaged(trainer: Trainer, module: LightningModule) -> Iterator[Values | None]:
    """The net with the average of the trainer's callback in it; gives the average's settings, None without one."""
    average = next((each for each in _all(trainer) if each.held), None)
    if average is None:
        yield None
        return
    average.swap_in(module)
    try:
        yield {**average.settings, "updates": average.updates}
    finally:
        average.swap_out(module)


def _all(trainer: Trainer) -> list[Averaging]:
    return [each for each in trainer.callbacks if isinstance(each, Averaging)]  # pyright: ignore


def _precise(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _saved_name(number: int, name: str = "") -> str:
    """Of a tensor of the entry `number` of `held`, in a checkpoint."""
    return f"{KEY}.{number}.{name}"


def _named(name: str, settings: Values) -> str:
    return f"{name} = {settings[name]!r}" if name in settings else f"no {name}"
