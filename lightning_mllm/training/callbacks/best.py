"""The weights of the best validation, which become the stage's weights in place of its last ones."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any, Literal, cast

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from lightning_mllm.training.callbacks.averaging import averaged
from lightning_mllm.training.callbacks.checkpoint import checkpoint_io
from lightning_mllm.training.callbacks.ending import tell
from lightning_mllm.training.checkpoints import WEIGHTS, Replaced, SavedWeights, Values, newest, read_state
from lightning_mllm.training.checkpoints.finding import REMEDY
from lightning_mllm.training.checkpoints.manifest import damage
from lightning_mllm.training.module import MultimodalModule

BEST = "best-*"
"""The checkpoint of the best weights, by its step."""


class BestWeights(Callback):
    """Keeps what the stage trained, as it was at the best validation, in `checkpoints/best-N` of the run folder.

    A checkpoint of weights alone, which every rank writes its shards of; where a callback averages the weights, it is
    the average that was validated. It is what a resumed run compares with. It may be of a later step than the
    checkpoint that the run goes on from: that step will be taken again, from the same samples.

    Args:
        monitor: The score of the validation sets (`data.val`) that decides, as it is logged: `val/loss`,
            `val/vqa_accuracy`, ...
        mode: Whether a smaller or a larger one is better.

    Raises:
        ValueError: The mode is another one.
    """

    def __init__(self, monitor: str = "val/loss", mode: Literal["min", "max"] = "min") -> None:
        if mode not in ("min", "max"):
            raise ValueError(f"BestWeights.mode: found {mode!r}, expected min or max")
        self.monitor, self.mode = monitor, mode
        self.folder = Path()
        """Of the run's checkpoints."""
        self.score, self.step = math.nan, 0
        """Of the best validation so far; step 0 is before the first."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        datamodule: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        if not getattr(datamodule, "val", True):
            raise ValueError("trainer.callbacks: found BestWeights and no data.val, expected sets that decide")
        self.folder = Path(trainer.default_root_dir) / "checkpoints"
        self.score, self.step = math.nan, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        expected = self.step if trainer.global_step else 0
        found: Values | None = None
        path, problem = newest(self.folder, BEST) if trainer.is_global_zero else None, ""
        if path is not None and trainer.global_step:
            problem = _problem(path)
            found = None if problem else read_state(path)
        found, problem = trainer.strategy.broadcast((found, problem))
        if expected and found is None:
            problem = problem or f"{self.folder}/{BEST}: found no checkpoint"
            raise ValueError(f"{problem}, expected the weights of step {expected}; {REMEDY}")
        if found is None:
            self.score, self.step = math.nan, 0
            if path is not None and not trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue]
                shutil.rmtree(path)
        else:
            self.score, self.step = found["score"], found["step"]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING or trainer.fast_dev_run:  # pyright: ignore
            return
        scores = trainer.callback_metrics
        if self.monitor not in scores:
            known = sorted(name for name in scores if name.startswith("val/"))
            raise ValueError(
                f"trainer.callbacks: BestWeights found no score {self.monitor!r}, expected one of {', '.join(known)}"
            )
        score = float(scores[self.monitor])
        if not math.isfinite(score) or (self.step and not self._better(score)):
            return
        self.score, self.step = score, trainer.global_step
        net = cast(MultimodalModule, pl_module)
        with averaged(trainer, net):
            tensors = {f"{WEIGHTS}{name}": tensor for name, tensor in net.checkpoint_tensors().items()}
            path = self.folder / BEST.replace("*", str(self.step))
            checkpoint_io(trainer).save(path, tensors, self.facts(), replaces=Replaced(BEST))

    def _better(self, score: float) -> bool:
        return score < self.score if self.mode == "min" else score > self.score

    def facts(self) -> Values:
        """Which validation was the best; for `stage.json`."""
        return {"monitor": self.monitor, "mode": self.mode, "score": self.score, "step": self.step}

    def weights(self, trainer: Trainer) -> SavedWeights:
        """Those of that validation, on rank 0.

        Raises:
            ValueError: They are damaged.
        """
        checkpoint_io(trainer).wait()
        path = newest(self.folder, BEST)
        assert path is not None
        if problem := _problem(path):
            raise ValueError(f"{problem}, expected the weights of step {self.step}; {REMEDY}")
        return SavedWeights(path)

    def state_dict(self) -> Values:
        return self.facts()

    def load_state_dict(self, state_dict: Values) -> None:
        for name in ("monitor", "mode"):
            if state_dict[name] != getattr(self, name):
                raise ValueError(
                    f"the checkpoint was written with BestWeights.{name} = {state_dict[name]!r}, expected"
                    f" {getattr(self, name)!r} as configured now; another run folder starts the stage anew"
                )
        self.score, self.step = state_dict["score"], state_dict["step"]


def _problem(path: Path) -> str:
    reason = damage(path)
    return f"{path}: found damaged weights ({reason})" if reason else ""


def best(trainer: Trainer) -> BestWeights | None:
    """The callback whose weights become the stage's; None where those are its last ones."""
    callbacks: list[Any] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    chosen = next((each for each in callbacks if isinstance(each, BestWeights)), None)
    if chosen is not None and not chosen.step:
        told = f"{trainer.default_root_dir}: no validation gave a finite {chosen.monitor}"
        tell(trainer, f"{told}, the last weights are handed over")
        return None
    return chosen
