"""What a tracker is told of a stage beside its curves: settings, the freeze table, answers, scores, weights."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from lightning_mllm.evaluation.scores import Example
from lightning_mllm.training.callbacks.metrics_csv import MetricsCsv
from lightning_mllm.training.checkpoints import newest
from lightning_mllm.training.evaluated import EvaluatedModule
from lightning_mllm.training.loggers.wandb_tracker import WandbTracker
from lightning_mllm.training.module import MultimodalModule
from lightning_mllm.weights.lineage import RECORD, WEIGHTS, InitSource

COLUMNS = ("step", "id", "picture", "question", "answer", "reference", "score")


class Tracking(Callback):
    """Tells every logger of the Trainer what it can hold.

    After each validation: the same few samples of each set, with picture, question, answer, reference and score. They
    are those that the scores keep for people, so nothing is generated for them.

    Args:
        count: Samples of a set in a table, 24 at most.
    """

    settings: Mapping[str, object] = {}
    """The resolved configuration, without secrets."""

    def __init__(self, count: int = 16) -> None:
        if not 1 <= count <= 24:
            raise ValueError(f"Tracking.count: found {count}, expected 1 to 24")
        self.count = count

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for logger in trainer.loggers:
            logger.log_hyperparams(dict(self.settings))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        rows = [asdict(row) for row in cast(MultimodalModule, pl_module).freeze_rows()]
        for tracker in _trackers(trainer):
            tracker.log_table("freeze_table", list(rows[0]), [list(row.values()) for row in rows])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for tracker in _trackers(trainer) if trainer.global_step else ():
            for each in trainer.loggers:
                if isinstance(each, MetricsCsv):
                    tracker.go_on(trainer.global_step, each.rows())

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._show_answers(trainer, cast(EvaluatedModule, pl_module), "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module = cast(EvaluatedModule, pl_module)
        self._show_answers(trainer, module, "test")
        found = {
            f"test/{name}{end}": value
            for scores in module.scores
            for name, interval in scores.compute().items()
            for end, value in (("", interval.value), ("/low", interval.low), ("/high", interval.high))
        }
        for tracker in _trackers(trainer):
            tracker.log_summary(found)

    def _show_answers(self, trainer: Trainer, module: EvaluatedModule, split: str) -> None:
        if trainer.is_global_zero:
            for scores in module.scores:
                if shown := scores.examples[: self.count]:
                    name = f"{split}/{scores.evaluation.task}{scores.evaluation.suffix}_answers"
                    for logger in trainer.loggers:
                        _show(logger, name, shown, trainer.global_step)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder, module = Path(trainer.default_root_dir), cast(MultimodalModule, pl_module)
        if not trainer.is_global_zero or module.stage is None:
            return
        is_done, last = (folder / WEIGHTS / RECORD).is_file(), newest(folder / "checkpoints")
        for tracker in _trackers(trainer):
            if tracker.log_checkpoints and last is not None:
                name = f"{artifact_name(folder)}-checkpoint"
                tracker.log_files(last, name, "checkpoint", {"step": trainer.global_step}, used=False)
            if tracker.log_weights and is_done:
                for source in module.stage.init_from:
                    log_weights(tracker, source, Path(module.runs), used=True)
                log_weights(tracker, str(folder.resolve()), Path(module.runs), used=False)


def artifact_name(stage: Path) -> str:
    """Of the weights of a stage: EXPERIMENT-STAGE."""
    return f"{stage.resolve().parent.name}-{stage.resolve().name}"


def log_weights(tracker: WandbTracker, source: str, runs: Path, used: bool) -> None:
    """The weights of a finished stage as an artifact; what is no stage of ours is left out.

    Args:
        tracker: Of the run that made or used them.
        source: As in `init_from`.
        runs: Where runs are kept.
        used: Whether the run only used them.
    """
    found = InitSource.find(source, runs)
    if found.record:
        facts = {name: found.record.get(name) for name in ("stage", "steps", "sha256")}
        tracker.log_files(found.path, artifact_name(found.path.resolve().parent), "stage-weights", facts, used=used)


def _trackers(trainer: Trainer) -> list[WandbTracker]:
    return [each for each in trainer.loggers if isinstance(each, WandbTracker)]


def _row(example: Example, step: int) -> list[object]:
    references = " / ".join(example.references)
    picture = _picture(example) if example.picture else None
    return [step, example.id, picture, example.prompt, example.answer, references, example.score]


def _picture(example: Example) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(example.picture.partition(",")[2]))).convert("RGB")


def _show(logger: Logger, name: str, examples: Sequence[Example], step: int) -> None:
    """Samples and their answers, in the form that a logger has for them; one that has none is told nothing."""
    if isinstance(logger, WandbTracker):
        logger.log_table(name, COLUMNS, [_row(each, step) for each in examples], step)
    elif isinstance(logger, WandbLogger):
        import wandb

        rows = [_row(each, step) for each in examples]
        shown = [[wandb.Image(cell) if isinstance(cell, Image.Image) else cell for cell in row] for row in rows]
        logger.log_table(name, list(COLUMNS), shown, step=step)
    elif isinstance(logger, TensorBoardLogger):
        writer: Any = logger.experiment
        columns = [column for column in COLUMNS if column != "picture"]
        lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
        for each in examples:
            cells = [cell for cell, column in zip(_row(each, step), COLUMNS, strict=True) if column != "picture"]
            lines.append(" | ".join(" ".join(str(cell).split()).replace("|", "\\|") for cell in cells))
            if each.picture:
                writer.add_image(f"{name}/{each.id}", pil_to_tensor(_picture(each)).to(torch.uint8), step)
        writer.add_text(name, "\n".join(lines), step)
