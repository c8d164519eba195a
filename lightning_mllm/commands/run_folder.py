"""A run folder before anything is built: can it be written, what lies there already."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import Namespace
from lightning import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lightning_mllm.commands.config import ConfigError
from lightning_mllm.training.callbacks.checkpoint import StageCheckpoint
from lightning_mllm.training.checkpoints import MANIFEST
from lightning_mllm.training.checkpoints.finding import candidates
from lightning_mllm.weights.disk import check_writable

FOLDERS = ("", "checkpoints", "weights")
"""Of a run that trains; the first is the run folder itself."""
FILES = {
    "fit": ("config.yaml", "metrics.csv", "checkpoints.json", "weights/stage.json", "weights/model.safetensors"),
    "test": ("test.json", "test_answers.jsonl"),
}
"""That a verb writes."""
FOREIGN = ("hpc_ckpt_*", "*.ckpt", "checkpoints/*.ckpt", "checkpoints/hpc_ckpt_*")
"""What Lightning would look for, and load, by itself."""


def check_writable_folders(run_dir: Path, verb: str) -> None:
    """Writes a small file into each folder in which `verb` will write.

    Raises:
        ConfigError: A folder cannot be written, or something else has its name.
    """
    if verb not in FILES:
        return
    folders = [run_dir / each for each in (FOLDERS if verb == "fit" else FOLDERS[:1])]
    try:
        check_writable(folders, [run_dir / each for each in FILES[verb]])
    except ValueError as error:
        raise ConfigError(f"run_dir: {error}") from None


def check_ckpt_path(path: str | None) -> None:
    """Raises ConfigError where `ckpt_path` is neither a checkpoint of ours nor a folder of them."""
    if path and not (Path(path) / MANIFEST).is_file() and not candidates(Path(path)):
        raise ConfigError(
            f"ckpt_path: found no {MANIFEST} in {path}, expected a checkpoint of this stage such as"
            " checkpoints/step-200, or a folder of them"
        )


@rank_zero_only
def say_what_is_ignored(run_dir: Path) -> None:
    """A line for each file in the run folder that Lightning would take for a checkpoint."""
    for each in sorted({each for pattern in FOREIGN for each in run_dir.glob(pattern)}):
        print(f"{each} is ignored: it is no checkpoint of ours, which are folders checkpoints/step-N")


def stage_checkpoint(settings: Namespace, verb: str) -> StageCheckpoint:
    """What saves while `fit` trains, and goes on from what it was told."""
    resume = settings.get("ckpt_path") if verb == "fit" else None
    return StageCheckpoint(settings.checkpoint_every, keep=settings.checkpoint_keep, resume=resume)


def load_nothing_unasked(trainer: Trainer, ckpt_path: str | None) -> None:
    """Keeps Lightning from choosing a checkpoint where it is given none: `hpc_ckpt_*` in a job of SLURM, or what
    OnExceptionCheckpoint wrote.
    """
    trainer._checkpoint_connector._user_managed = not ckpt_path
