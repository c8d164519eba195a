"""Whether the disk has room for what a training writes, told before its first step."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from lightning import LightningModule, Trainer

from lightning_mllm.training.callbacks.averaging import Averaging
from lightning_mllm.training.checkpoints.finding import candidates
from lightning_mllm.training.module import MultimodalModule
from lightning_mllm.weights.disk import check_room
from lightning_mllm.weights.lineage import WEIGHTS

MOMENTS = 2
"""Of AdamW, each as large as what is trained."""


def check_disk(trainer: Trainer, module: LightningModule, folder: Path, copies: int) -> None:
    """All ranks call it, rank 0 looks.

    Args:
        folder: Of the checkpoints.
        copies: How many will be on the disk at once.

    Raises:
        ValueError: There is too little room; by all ranks.
    """
    problem = ""
    # Goes through `state_dict`, which all ranks call.
    checkpoint, weights = sizes(trainer, module)
    if trainer.is_global_zero:
        try:
            files = [each for path in candidates(folder) for each in path.rglob("*") if each.is_file()]
            there = sum(each.stat().st_size for each in files)
            needs = {folder: max(copies * checkpoint - there, 0), Path(trainer.default_root_dir) / WEIGHTS: weights}
            check_room(needs, f"{copies} checkpoints of {checkpoint} bytes and {weights} bytes of weights")
        except (OSError, ValueError) as error:  # told to all ranks, which wait for it
            problem = str(error)
    if problem := trainer.strategy.broadcast(problem):
        raise ValueError(problem)


def sizes(trainer: Trainer, module: LightningModule) -> tuple[int, int]:
    """Bytes of a checkpoint's tensors, and of the weights that the stage hands over."""
    net = cast(MultimodalModule, module)
    tensors = {name: each.nbytes for name, each in net.checkpoint_tensors().items()}
    weights, trained = sum(tensors.values()), sum(size for name, size in tensors.items() if name in net.trained)
    averages = [each for each in trainer.callbacks if isinstance(each, Averaging)]  # pyright: ignore
    held = sum(getattr(each, "snapshots", 1) for each in averages)
    return weights + MOMENTS * trained + held * trained, weights
