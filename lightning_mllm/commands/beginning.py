"""What is asked, and written, before a stage trains: with what it begins, or goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import jsonargparse
from lightning import LightningDataModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lightning_mllm.commands.finished import changed_settings, clear, refuse_foreign, remove_unfinished_files
from lightning_mllm.commands.identity import check_identity, identity_of
from lightning_mllm.training.module import MultimodalModule


@rank_zero_only
def begin(
    run_dir: Path,
    recipe: Mapping[str, object],
    settings: jsonargparse.Namespace,
    trainer: Trainer,
    model: MultimodalModule,
    datamodule: LightningDataModule,
    allowed: Sequence[str],
    *,
    anew: bool,
) -> None:
    """Compares a stage that goes on with what it was begun with, writes `identity.json`, and tells what was allowed.

    Args:
        recipe: What decides the weights of the stage.
        settings: All of them.
        allowed: Names of differences with which it goes on all the same.
        anew: Whether what an earlier training left there goes (`--overwrite`); not before the data were read.

    Raises:
        ConfigError: It would go on with something else, or no run of ours made the folder.
    """
    if anew:
        refuse_foreign(run_dir)
    begun_in = _run_of(settings.get("ckpt_path"))
    assert model.stage is not None
    precision = {"trainer": str(trainer.precision), "hardware": str(settings["hardware"]["precision"])}
    now = identity_of(
        recipe, datamodule, model.processor, model.stage.init_from, Path(model.runs), begun_in, precision=precision
    )
    if anew:
        clear(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    remove_unfinished_files(run_dir)
    changed = changed_settings(run_dir, recipe) if begun_in is not None else []
    for sentence in check_identity(run_dir, now, begun_in=begun_in, settings=changed, allowed=allowed):
        print(sentence)


def _run_of(checkpoint: str | None) -> Path | None:
    """The run folder of a checkpoint, or of a folder of checkpoints."""
    if checkpoint is None:
        return None
    path = Path(checkpoint).resolve()
    return path.parent if path.name == "checkpoints" else path.parent.parent
