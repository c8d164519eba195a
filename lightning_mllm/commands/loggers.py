"""Which loggers a verb has beside `metrics.csv`, and by which names.

nothing said                                  W&B where a key or WANDB_MODE asks for it
WANDB_MODE=disabled                           no W&B, named or not
--trainer.logger=False                        none
--trainer.logger=wandb                        W&B, offline where there is no key
--trainer.logger=TensorBoardLogger            a class of lightning.pytorch.loggers by its own name
--trainer.logger='[wandb, tensorboard]'       several
--trainer.logger.tags='[a, b]'                its arguments; `{run_dir}` in one is the run folder of the stage
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonargparse
from lightning.pytorch import loggers as lightning_loggers
from lightning.pytorch.loggers import Logger

from lightning_mllm.commands.config import ConfigError, nearest
from lightning_mllm.training.loggers.wandb_account import account
from lightning_mllm.training.loggers.wandb_tracker import WandbTracker

KEY = ("trainer", "logger")
RUN_DIR = "{run_dir}"
NAMES = {
    "wandb": f"{WandbTracker.__module__}.WandbTracker",
    **{name: f"lightning.pytorch.loggers.{name}" for name in lightning_loggers.__all__ if name != "Logger"},
    "tensorboard": "lightning.pytorch.loggers.TensorBoardLogger",
}
"""Short name -> class."""
SAVED = {
    "TensorBoardLogger": {"save_dir": RUN_DIR, "name": "tensorboard", "version": ""},
    "CSVLogger": {"save_dir": RUN_DIR, "name": "csv", "version": ""},
    "MLFlowLogger": {"save_dir": f"{RUN_DIR}/mlruns"},
    "WandbLogger": {"save_dir": RUN_DIR},
}
"""What classes of Lightning take unless it is given: what they write belongs to the run folder."""


def named(value: object, where: str) -> object:
    """`trainer.logger` as in YAML, with short names as dotted ones and folders inside the run folder.

    Args:
        value: What a file or an option says.
        where: What a sentence about it begins with.

    Raises:
        ConfigError: There is no such logger.
    """
    if isinstance(value, list):
        return [named(each, where) for each in value]
    if isinstance(value, str):
        value = {"class_path": value}
    if not isinstance(value, Mapping) or not isinstance(name := value.get("class_path"), str):
        return value
    if "." not in name and name not in NAMES:
        raise ConfigError(f"{where}: found '{name}', expected one of {', '.join(NAMES)}{nearest(name, NAMES)}")
    path = NAMES.get(name, name)
    folders = SAVED.get(path.rpartition(".")[2], {}) if path.startswith("lightning.") else {}
    arguments = value.get("init_args") or {}
    if not isinstance(arguments, Mapping):
        raise ConfigError(f"{where}: found '{arguments}' as init_args of {name}, expected a mapping")
    return {**value, "class_path": path, "init_args": {**folders, **arguments}}


def fill_run_dir(settings: jsonargparse.Namespace, run_dir: str) -> None:
    """Replaces `{run_dir}` by the run folder in the arguments of the loggers of a configuration."""
    given: Any = settings["trainer"]["logger"]
    for each in given if isinstance(given, list) else [given]:
        if isinstance(each, jsonargparse.Namespace) and "init_args" in each:
            for key, value in vars(each.init_args).items():
                if isinstance(value, str):
                    setattr(each.init_args, key, value.replace(RUN_DIR, run_dir))


def loggers_of(given: object, run_dir: Path, verb: str, runs: str) -> list[Logger]:
    """The loggers of a Trainer.

    Args:
        given: `trainer.logger`, with its classes built.
        run_dir: The run folder of the stage.
        verb: fit, validate, test or predict.
        runs: Where runs are kept; the path from there to the stage names the experiment.

    Raises:
        ConfigError: WANDB_MODE is none of W&B's modes.
    """
    found = [each for each in (given if isinstance(given, list) else [given]) if isinstance(each, Logger)]
    try:
        if given is None or given is True:
            found: list[Logger] = [WandbTracker()] if verb != "predict" and account().is_asked_for else []
        elif any(_asks_the_environment(each) for each in found) and account().mode == "disabled":
            found = [each for each in found if not _asks_the_environment(each)]
    except ValueError as error:
        raise ConfigError(str(error)) from None
    for each in found:
        if isinstance(each, WandbTracker):
            each.set_stage(run_dir, verb, experiment_of(run_dir, runs))
    return found


def _asks_the_environment(logger: Logger) -> bool:
    return isinstance(logger, WandbTracker) and logger.mode is None


def weights_tracker(given: object) -> WandbTracker | None:
    """The tracker of a recorded `trainer.logger` that keeps weights as artifacts; None where there is none, and where
    WANDB_MODE is disabled."""
    for each in given if isinstance(given, list) else [given]:
        if isinstance(each, Mapping) and each.get("class_path") == NAMES["wandb"]:
            tracker = WandbTracker(**(each.get("init_args") or {}))
            is_off = _asks_the_environment(tracker) and account().mode == "disabled"
            return tracker if tracker.log_weights and not is_off else None
    return None


def experiment_of(run_dir: Path, runs: str) -> str:
    """What W&B groups the stages by: the folder of the run, below that of all runs where it is there."""
    folder, root = run_dir.resolve().parent, Path(runs).resolve()
    return folder.relative_to(root).as_posix() if folder.is_relative_to(root) and folder != root else folder.name
