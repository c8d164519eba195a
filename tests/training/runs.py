"""One way to run a toy stage in a test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
from lightning import Trainer
from torch import Tensor

from lightning_mllm.training.callbacks.checkpoint import StageCheckpoint
from lightning_mllm.training.callbacks.metrics_csv import MetricsCsv
from lightning_mllm.training.callbacks.record import StageRecord
from lightning_mllm.training.callbacks.rng import RandomStates
from lightning_mllm.training.checkpoints import SavedTensors, newest, read_state
from lightning_mllm.training.module import MultimodalModule
from lightning_mllm.training.parallelize import ParallelPlan
from lightning_mllm.training.stage import StageSettings
from tests.toy import Toy, ToyLanguage
from tests.training.data import ToyData


def settings(name: str = "instruct", **changes: Any) -> StageSettings:
    given: dict[str, Any] = {"name": name, "lr": 5e-3, "global_batch": 4, "warmup": 0.25, "weight_decay": 0.1}
    return StageSettings(**{**given, **changes})


def trainer(
    folder: Path, *, every_n_steps: int | str = 1, callbacks: list[Any] | None = None, **arguments: Any
) -> Trainer:
    return Trainer(
        **{
            "default_root_dir": str(folder),
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 1,
            "use_distributed_sampler": False,
            "check_val_every_n_epoch": None,
            "limit_val_batches": 0,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            "enable_model_summary": False,
            "enable_progress_bar": False,
            "logger": MetricsCsv(str(folder / "metrics.csv")),
            "callbacks": [RandomStates(), StageCheckpoint(every_n_steps), StageRecord(), *(callbacks or [])],
            **arguments,
        }
    )


def fit(
    folder: Path,
    *,
    stage: StageSettings | None = None,
    data: dict[str, Any] | None = None,
    dropout: float = 0.0,
    depth: int = 2,
    build: Callable[[StageSettings], Any] | None = None,
    resume: bool = False,
    runs: str = "runs",
    parallel: ParallelPlan = ParallelPlan(),
    **arguments: Any,
) -> Any:
    """Trains, from the start or from the folder's last checkpoint, and gives the module back.

    `build` makes another net than a toy from the stage's settings.
    """
    lightning.seed_everything(3, verbose=False)
    stage = stage or settings()
    if build is None:
        module: Any = Toy(language=ToyLanguage(dropout=dropout, depth=depth), stage=stage, runs=runs)
    else:
        module = build(stage)
        module.runs = runs
    module.parallel = parallel
    datamodule = ToyData(**(data or {}), processor=module.processor)
    own = trainer(folder, **arguments)
    own.accumulate_grad_batches = datamodule.accumulation(own.world_size)
    checkpoint = newest(folder / "checkpoints") if resume else None
    own.fit(module, datamodule=datamodule, ckpt_path=checkpoint)
    return module


def last(folder: Path) -> Path:
    """The newest checkpoint of a run folder."""
    found = newest(folder / "checkpoints")
    assert found is not None
    return found


def saved(folder: Path) -> dict[str, Any]:
    """The plain values of the newest checkpoint of a run folder."""
    return read_state(last(folder))


def saved_tensors(folder: Path) -> dict[str, Tensor]:
    """The full tensors of the newest checkpoint of a run folder."""
    return dict(SavedTensors(last(folder)))


def losses(folder: Path, column: str = "train/loss") -> list[tuple[int, float]]:
    """(step, value) of the folder's metrics."""
    rows = MetricsCsv(str(folder / "metrics.csv"))._read()[1]
    return [(int(row["step"]), float(row[column])) for row in rows if row.get(column)]


def weights(module: MultimodalModule) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.trained_tensors().items()}
