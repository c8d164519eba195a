"""Random states, one set per rank, so that dropout after a restart goes on where it stopped."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning import Callback, LightningModule, Trainer

from lightning_mllm.training.checkpoints import Values


def read_state(device: torch.device) -> Values:
    """The states of torch (CPU and `device`), numpy and Python."""
    name, keys, position, has_gauss, gauss = np.random.get_state()  # pyright: ignore[reportAssignmentType]
    assert name == "MT19937"
    version, words, gauss_next = random.getstate()
    state = {
        "torch": torch.get_rng_state(),
        "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "numpy_rest": [int(position), int(has_gauss), float(gauss)],
        "python": torch.tensor(words, dtype=torch.int64),
        "python_rest": [version, gauss_next],
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def write_state(state: Values, device: torch.device) -> None:
    """Puts back what `read_state` gave."""
    torch.set_rng_state(state["torch"].cpu())
    position, has_gauss, gauss = state["numpy_rest"]
    np.random.set_state(("MT19937", state["numpy"].numpy().astype(np.uint32), position, has_gauss, gauss))
    version, gauss_next = state["python_rest"]
    random.setstate((version, tuple(state["python"].tolist()), gauss_next))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


class RandomStates(Callback):
    """Gives each rank its own stream, keeps the streams in checkpoints, and hides validation from them.

    Contract: every rank saves a checkpoint together (Lightning does), since the states are gathered then. A run resumed
    on more ranks than it was saved on gives the new ranks fresh streams.
    """

    def __init__(self) -> None:
        self._saved: list[Values] | None = None
        self._before_validation: Values | None = None
        self._device = torch.device("cpu")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._device = trainer.strategy.root_device

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        rank = trainer.global_rank
        if rank > 0:
            seed = (torch.initial_seed() + rank) % 2**32
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
        if self._saved is not None and rank < len(self._saved):
            write_state(self._saved[rank], self._device)
        self._saved = self._before_validation = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._before_validation = read_state(self._device)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._before_validation is not None:
            write_state(self._before_validation, self._device)
            self._before_validation = None

    def state_dict(self) -> Values:
        # A validation that is stopped has drawn, and will be taken again.
        own = self._before_validation or read_state(self._device)
        if not (dist.is_available() and dist.is_initialized()):
            return {"ranks": [own]}
        states: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(states, own)
        return {"ranks": states}

    def load_state_dict(self, state_dict: Values) -> None:
        self._saved = state_dict["ranks"]
