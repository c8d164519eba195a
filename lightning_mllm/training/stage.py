"""The numbers of one training stage: what a paper's table of hyper-parameters states, and nothing about hardware."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from lightning_mllm.contracts import ParamGroup
from lightning_mllm.language.lora import Lora

Reduction = Literal["token_mean", "micro_batch_mean", "sample_mean"]


def together(per_device_batch: int | None, micro_batch: int | None) -> int | None:
    """Samples of one published micro-batch, if one is stated."""
    return micro_batch if per_device_batch is None else per_device_batch


def passes(epochs: float | None) -> float:
    """Over the data, where the stage gives no steps."""
    return 1.0 if epochs is None else epochs


@dataclass(frozen=True, kw_only=True)
class StageSettings:
    """One stage as published: the stage's name, its data order in samples, its optimiser and its schedule.

    Raises:
        ValueError: A number is out of range.
    """

    name: str
    """A name of the architecture's `stages`."""
    train: dict[str, ParamGroup] | None = None
    """Pattern over parameter names -> how it is trained; None is the architecture's own table for this stage."""
    init_from: dict[str, float] = field(default_factory=dict)
    """Earlier run (or folder, or file) -> its weight in the mix; the weights sum to 1."""
    global_batch: int = 1
    """Samples per optimizer step over all ranks and micro-batches."""
    micro_batch: int | None = None
    """Samples of one forward pass of a rank, in stages whose samples are one another's negatives and where it is no
    matter of hardware, or whose global batch is of an odd size; None leaves it to the hardware."""
    reduction: Reduction = "token_mean"
    """How the loss weighs tokens and samples. "token_mean": over all supervised tokens of the global batch, so a long
    answer counts for more. "micro_batch_mean": the mean over the tokens of each `per_device_batch` samples, then the
    mean of these means (LAVIS, LLaMA2-Accessory, and the Trainer of transformers that LLaVA used, whose ranks and
    accumulation steps are averaged). "sample_mean": each sample's mean over its tokens, then the mean of samples."""
    per_device_batch: int | None = None
    """Samples that one device of the original took at once: those whose tokens "micro_batch_mean" averages first, and
    those that `group: source` takes from one source. Not what this machine holds, which changes nothing; None is
    `micro_batch`."""
    epochs: float | None = None
    """Passes over the data; 1 where neither they nor `steps` are given."""
    steps: int | None = None
    """Optimizer steps, in place of epochs: as many passes over the data as they take."""
    lr: float = 1e-3
    """Peak learning rate of every pattern that states none."""
    weight_decay: float = 0.0
    """Of every pattern that states none; tensors of one dimension and biases are never decayed."""
    decay_scalars: bool = False
    """Whether tensors of no dimension are decayed, as LAVIS does it with BLIP-2's temperature
    (`lavis/models/blip2_models/blip2.py`, `get_optimizer_params`: only tensors of one dimension and biases are not)."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon` has torch's Muon for weights of linear layers, and AdamW for heads, embeddings, norms and biases; updates
    are of AdamW's size, so that rates and weight decay of AdamW hold (muon.py). Not with sharded parameters."""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    warmup: float = 0.03
    """Below 1: a share of all optimizer steps of the schedule. From 1: a number of steps."""
    warmup_lr: float = 0.0
    """Where the warm-up begins, for the stage's `lr`; patterns with their own keep the same ratio."""
    decay: Literal["cosine", "cosine_epochs", "linear", "constant"] = "cosine"
    """From the peak, reached at the end of the warm-up, down to `min_lr` at the last step. `cosine_epochs` is LAVIS's:
    the warm-up is in the first epoch, epoch e of E has the rate of a cosine at e / E, and none reaches `min_lr`
    (`lavis/common/optims.py`, `LinearWarmupCosineLRScheduler`)."""
    min_lr: float = 0.0
    """Where the decay ends, for the stage's `lr`; patterns with their own keep the same ratio."""
    steps_before: int = 0
    """Optimizer steps of the schedule that an earlier stage has taken: where something else changes on the way of one
    published schedule, such as the size of the images, it is that of several stages, each with its part of it."""
    steps_after: int = 0
    """Optimizer steps of the schedule that are left to later stages."""
    validate_every: int | None = None
    """Optimizer steps between two validations (`data.val`); None leaves it to `trainer.val_check_interval`, once at the
    end of the stage."""
    gradient_clip: float = 0.0
    """Largest L2 norm of all gradients together; 0 does not clip."""
    lora: Lora | None = None
    """The sizes of the adapters, in a stage that trains them; None in such a stage takes the defaults of `Lora`."""

    def __post_init__(self) -> None:
        if self.global_batch < 1:
            raise ValueError(f"stage.global_batch: found {self.global_batch}, expected at least 1")
        if self.micro_batch is not None and self.micro_batch < 1:
            raise ValueError(f"stage.micro_batch: found {self.micro_batch}, expected at least 1")
        if self.optimizer not in ("adamw", "muon"):
            raise ValueError(f"stage.optimizer: found {self.optimizer!r}, expected adamw or muon")
        if self.reduction not in get_args(Reduction):
            raise ValueError(
                f"stage.reduction: found {self.reduction!r}, expected one of {', '.join(get_args(Reduction))}"
            )
        if self.reduction == "micro_batch_mean" and self.together is None:
            raise ValueError(
                "stage.per_device_batch: found none, expected the samples whose tokens 'micro_batch_mean' averages"
            )
        own = self.per_device_batch
        if own is not None and (own < 1 or self.global_batch % own):
            raise ValueError(
                f"stage.per_device_batch: found {own}, expected a divisor of stage.global_batch = {self.global_batch}"
            )
        if self.steps is not None and self.epochs is not None:
            raise ValueError(f"stage.steps: found {self.steps} and stage.epochs {self.epochs}, expected one of them")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"stage.steps: found {self.steps}, expected at least 1")
        if self.epochs is not None and (self.epochs <= 0 or not math.isfinite(self.epochs)):
            raise ValueError(f"stage.epochs: found {self.epochs}, expected a finite number above 0")
        if self.validate_every is not None and self.validate_every < 1:
            raise ValueError(f"stage.validate_every: found {self.validate_every}, expected at least 1")
        for name in ("lr", "eps"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"stage.{name}: found {getattr(self, name)}, expected a finite number above 0")
        for name in ("weight_decay", "warmup", "warmup_lr", "min_lr", "steps_before", "steps_after", "gradient_clip"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"stage.{name}: found {getattr(self, name)}, expected at least 0 and finite")
        if self.min_lr > self.lr:
            raise ValueError(f"stage.min_lr: found {self.min_lr}, expected at most stage.lr = {self.lr}")
        if self.warmup_lr > self.lr:
            raise ValueError(f"stage.warmup_lr: found {self.warmup_lr}, expected at most stage.lr = {self.lr}")
        if self.decay == "cosine_epochs":
            if self.steps is not None or (self.epochs or 1) % 1:
                found = f"stage.steps {self.steps}" if self.steps is not None else f"stage.epochs {self.epochs}"
                raise ValueError(f"stage.decay: found cosine_epochs and {found}, expected a whole number of epochs")
            if self.steps_before or self.steps_after:
                raise ValueError(
                    "stage.decay: found cosine_epochs in a stage that is part of a schedule, expected another decay"
                )
        for beta in self.betas:
            if not 0 <= beta < 1:
                raise ValueError(f"stage.betas: found {beta}, expected numbers from 0 up to, not including, 1")

    def check_optimizer(self, sharded: bool) -> None:
        """Refuses Muon where a rank has a part of each matrix: products of parts in bfloat16 give another update.

        Raises:
            ValueError: The stage has it, and parameters are sharded.
        """
        if sharded and self.optimizer == "muon":
            raise ValueError(
                "stage.optimizer: found muon with sharded parameters, expected adamw, or trainer.strategy=ddp"
            )

    @property
    def together(self) -> int | None:
        """Samples of one published micro-batch, if one is stated."""
        return together(self.per_device_batch, self.micro_batch)

    def warmup_steps(self, total: int) -> int:
        """How many of `total` optimizer steps warm up."""
        return math.ceil(self.warmup * total) if self.warmup < 1 else round(self.warmup)

    def lr_factor(self, step: int, total: int) -> float:
        """What the peak rate is multiplied by in the stage's optimizer step number `step` (from 0) of `total`.

        The same curve as `transformers.get_cosine_schedule_with_warmup` and `get_linear_schedule_with_warmup`, which
        the published LLaVA recipes use.
        """
        step, total = step + self.steps_before, total + self.steps_before + self.steps_after
        warmup, start, floor = self.warmup_steps(total), self.warmup_lr / self.lr, self.min_lr / self.lr
        rising = start + (1.0 - start) * step / warmup if warmup else 1.0
        if self.decay == "cosine_epochs":
            epochs = int(self.epochs or 1)
            epoch = min(step * epochs // max(1, total), epochs - 1)
            return floor + (1.0 - floor) * _half_cosine(epoch / epochs) if epoch else min(1.0, rising)
        if step < warmup:
            return rising
        if self.decay == "constant":
            return 1.0
        progress = min(1.0, (step - warmup) / max(1, total - warmup))
        left = _half_cosine(progress) if self.decay == "cosine" else 1.0 - progress
        return floor + (1.0 - floor) * left


def _half_cosine(progress: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * progress))
