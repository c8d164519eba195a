"""How many optimizer steps a stage takes, each of them of a whole global batch.

Lightning limits micro-batches, and takes a last step of those that are left. Of such a step only a part would be
learned, since the weights of rows are those of the whole global batch (training/reduction.py).
"""

from __future__ import annotations

from typing import Any

from lightning import Trainer


def take_whole_steps(trainer: Trainer) -> None:
    """Makes the Trainer's limit one of optimizer steps: a share of the data is rounded up to whole steps, and a
    `fast_dev_run` of N takes N steps in place of N micro-batches.

    Raises:
        ValueError: A number of micro-batches is no multiple of those that a step takes.
    """
    accumulate, limit = trainer.accumulate_grad_batches, trainer.limit_train_batches
    own: Any = trainer  # Lightning sets some attributes elsewhere
    name = "overfit_batches" if own.overfit_batches else "limit_train_batches"
    if own.fast_dev_run and not own.overfit_batches:
        trainer.limit_train_batches = int(own.fast_dev_run) * accumulate
    elif isinstance(limit, int):
        if limit % accumulate:
            raise ValueError(
                f"trainer.{name}: found {limit} micro-batches, expected a multiple of the {accumulate} that an"
                " optimizer step takes"
            )
    elif limit is not None and limit < 1.0:
        whole = int(own.datamodule.optimizer_steps) * accumulate
        trainer.limit_train_batches = -(-int(whole * limit) // accumulate) * accumulate


def optimizer_steps(trainer: Trainer, published: int | None) -> int:
    """How many the stage takes, from the data module's `optimizer_steps` and the Trainer's limits.

    The Trainer's own `estimated_stepping_batches` must not be asked before training starts: it sets the loaders up
    before a checkpoint's loader state is read, and the resumed run would start its data anew, silently.

    Args:
        trainer: After `take_whole_steps`.
        published: Steps that the stage states, if it does.

    Raises:
        ValueError: The data take other steps than the stage.
    """
    datamodule: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
    steps = int(datamodule.optimizer_steps)
    if published not in (None, steps):
        raise ValueError(f"stage.steps: found {published}, expected the {steps} of {type(datamodule).__name__}")
    if isinstance(limit := trainer.limit_train_batches, int):
        steps = min(steps, limit // trainer.accumulate_grad_batches)
    return steps if trainer.max_steps < 0 else min(steps, trainer.max_steps)
