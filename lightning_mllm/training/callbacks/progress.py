"""One bar for a stage: steps done, the loss, the time left."""

from __future__ import annotations

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class StageProgress(ProgressBar):
    """A rich bar over optimizer steps, and one over batches while evaluating; on rank 0 only."""

    def __init__(self, every_n_steps: int = 5) -> None:
        super().__init__()
        self.every_n_steps = max(1, every_n_steps)
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def _start(self, trainer: Trainer, name: str, total: float) -> None:
        if not self._enabled or not trainer.is_global_zero:
            return
        if self._progress is None:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self._progress.start()
        known = None if total == float("inf") else int(total)
        self._tasks[name] = self._progress.add_task(name, total=known, note="")

    def _move(self, name: str, completed: int, note: str = "") -> None:
        if self._progress is not None and name in self._tasks:
            self._progress.update(self._tasks[name], completed=completed, note=note)

    def _end(self, name: str) -> None:
        if self._progress is None:
            return
        if (task := self._tasks.pop(name, None)) is not None and name != "train":
            self._progress.remove_task(task)
        if not self._tasks:
            self._progress.stop()
            self._progress = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(trainer, "train", trainer.estimated_stepping_batches)
        self._move("train", trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step % self.every_n_steps == 0 or step >= trainer.estimated_stepping_batches:
            loss = trainer.progress_bar_metrics.get("train/loss")
            self._move("train", step, "" if loss is None else f"loss {float(loss):.4f}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end("train")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        for name in list(self._tasks):
            self._end(name)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._start(trainer, "validate", sum(_finite(trainer.num_val_batches)))

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._move("validate", sum(_finite(trainer.num_val_batches)[:dataloader_idx]) + batch_idx + 1)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end("validate")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(trainer, "test", sum(_finite(trainer.num_test_batches)))

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._move("test", sum(_finite(trainer.num_test_batches)[:dataloader_idx]) + batch_idx + 1)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end("test")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(trainer, "predict", sum(_finite(trainer.num_predict_batches)))

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._move("predict", sum(_finite(trainer.num_predict_batches)[:dataloader_idx]) + batch_idx + 1)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end("predict")


def _finite(counts: list[int | float]) -> list[int]:
    return [int(count) for count in counts if count != float("inf")]
