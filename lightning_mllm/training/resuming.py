"""What a checkpoint says of its stage, and how a stage goes on that is now cut into other micro-batches.

Lightning counts micro-batches, a checkpoint lies between optimizer steps: on another number of ranks, or with other
micro-batches, what is counted is as many steps of the new number of micro-batches. The data go on by themselves, for
their position counts samples (data_modules/stream.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Protocol

from lightning import Trainer

from lightning_mllm.training.stage import StageSettings

STAGE, ACCUMULATION, LIMIT = "stage", "accumulation", "limit"
"""Entries of a checkpoint: the stage's settings; micro-batches of a step; optimizer steps that the Trainer allows."""


def note_stage(checkpoint: dict[str, Any], trainer: Trainer, stage: StageSettings | None) -> None:
    """Writes into a checkpoint what `check_stage` reads."""
    checkpoint[STAGE] = None if stage is None else asdict(stage)
    checkpoint[ACCUMULATION] = trainer.accumulate_grad_batches
    checkpoint[LIMIT] = _limit(trainer)


class Resumed(Protocol):
    """The module of a stage that goes on."""

    stage: StageSettings | None
    drift: tuple[str, ...]

    @property
    def trainer(self) -> Trainer: ...

    def configure_optimizers(self) -> Any: ...

    def optimizer_steps(self) -> int: ...


def check_stage(checkpoint: dict[str, Any], module: Resumed) -> None:
    """Compares the stage with that of a checkpoint, and counts its micro-batches as they are cut now.

    Raises:
        ValueError: The stage has other settings, or its end would come after another number of optimizer steps.
    """
    trainer, stage = module.trainer, module.stage
    found, expected = checkpoint.get(STAGE), None if stage is None else asdict(stage)
    if found:
        found = {"optimizer": "adamw", **found}  # what checkpoints were written with that do not say it
    if found != expected and found and expected:
        changed = [key for key in {**expected, **found} if found.get(key) != expected.get(key)]
        for key in changed:
            if not any(f"stage.{key}" == name or name.startswith(f"stage.{key}.") for name in (*module.drift,)):
                if "stage" in module.drift:
                    continue
                raise ValueError(
                    f"the checkpoint was written with stage.{key} = {found.get(key)!r}, expected"
                    f" {expected.get(key)!r} as configured now; --allow-drift stage.{key} goes on with it, another run"
                    " folder starts the stage anew"
                )
        _take_settings(checkpoint, module)
    now, before = trainer.accumulate_grad_batches, checkpoint.get(ACCUMULATION)
    if before in (None, now) or "loops" not in checkpoint:
        return
    if (limit := _limit(trainer)) != checkpoint.get(LIMIT):
        raise ValueError(
            f"trainer.limit_train_batches: found {trainer.limit_train_batches} micro-batches, which are {limit}"
            f" optimizer steps now, expected the {checkpoint.get(LIMIT)} of the checkpoint, whose steps took {before}"
            f" micro-batches and not {now}; change it with them"
        )
    loop = checkpoint["loops"]["fit_loop"]
    loop["epoch_loop.batch_progress"] = _recounted(loop["epoch_loop.batch_progress"], before, now)


def _take_settings(checkpoint: dict[str, Any], module: Resumed) -> None:
    """Puts the optimizer's and the schedule's settings as they are now in place of those in a checkpoint."""
    if not checkpoint.get("optimizer_states") or module.stage is None:
        return
    new = module.configure_optimizers()["optimizer"].param_groups
    factor = module.stage.lr_factor(checkpoint["global_step"], module.optimizer_steps())
    (state,) = checkpoint["optimizer_states"]
    if len(new) != len(state["param_groups"]):
        return  # other parameters train: told where they are read
    for group, settings in zip(state["param_groups"], new, strict=True):
        group.update({name: settings[name] for name in ("initial_lr", "betas", "eps", "weight_decay")})
        group["lr"] = settings["initial_lr"] * factor
    for schedule in checkpoint.get("lr_schedulers", ()):
        schedule["base_lrs"] = [settings["initial_lr"] for settings in new]


def _limit(trainer: Trainer) -> int | None:
    """Optimizer steps that `limit_train_batches` allows where it is a number of micro-batches."""
    limit = trainer.limit_train_batches
    return limit // trainer.accumulate_grad_batches if isinstance(limit, int) else None


def _recounted(progress: Mapping[str, Any], before: int, now: int) -> dict[str, Any]:
    """Lightning's counters of micro-batches, at the same optimizer step."""
    found = dict(progress)
    for name in ("total", "current"):
        counts = progress[name]
        ready = counts["ready"] // before * now
        # `completed` is one behind where the checkpoint was written in the last micro-batch.
        found[name] = {key: ready - (counts["ready"] - value) for key, value in counts.items()}
    return found
