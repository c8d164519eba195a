"""What the row of an optimizer step says beside the mean loss: the loss of each source, the rate of each group; and
where it is written.

Legend: B rows of a micro-batch, K training sources.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from lightning import Trainer
from torch import Tensor

from lightning_mllm import signals
from lightning_mllm.collectives import all_reduce
from lightning_mllm.contracts import Batch, Output
from lightning_mllm.training.callbacks.throughput import Throughput
from lightning_mllm.training.reduction import held_out_loss

SOURCE = "source "
HOST = "host"
TEXT = "data.text.tokens"
"""What loaders call the rows of plain text beside the global batch."""


def sources_of(datamodule: object) -> list[str]:
    """The training sources by name, where a data module has several."""
    text = [TEXT] if getattr(datamodule, "text", None) is not None else []
    found = [*getattr(datamodule, "train", {}), *text]
    return found if len(found) > 1 else []


def losses_of_sources(sources: Sequence[str], batch: Batch, output: Output) -> dict[str, Tensor]:
    """`f64[2]` of each source: what its rows add to the sum of its losses, and to the number of its items.

    Every rank names all sources, and the device is not asked.
    """
    if not sources:
        return {}
    losses, items = held_out_loss(output)
    named = batch.sources or [""] * len(losses)
    mask = torch.tensor([[name == source for name in named] for source in sources], dtype=losses.dtype)
    sums = mask.to(losses.device, non_blocking=True) @ torch.stack([losses.detach(), items.to(losses.dtype)], 1)
    return {f"{SOURCE}{source}": pair for source, pair in zip(sources, sums.double(), strict=True)}


def reduced(sums: Mapping[str, Float[Tensor, " _"]], host: Sequence[float] = ()) -> dict[str, list[float]]:
    """The sums of all ranks, by name; each of them has the same names and numbers.

    On the way every rank hears of a signal that one of them has received (`signals.agreed`).

    Args:
        sums: f64, on the device.
        host: what this rank knows without it; all ranks' sums of these are `HOST`.
    """
    received = signals.received()
    known = [*host, *(float(received == each) for each in signals.SIGNALS)]
    own = torch.tensor(known, dtype=torch.float64).to(next(iter(sums.values())).device, non_blocking=True)
    flat = all_reduce(torch.cat([own, *sums.values()])).tolist()
    heard = zip(signals.SIGNALS, flat[len(host) : len(known)], strict=True)
    signals.agree(next((each for each, ranks in heard if ranks), 0))
    found, begin = {HOST: flat[: len(host)]}, len(known)
    for name, each in sums.items():
        found[name], begin = flat[begin : begin + len(each)], begin + len(each)
    return found


def means_of_sources(sums: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The mean loss of each source that the step has rows of."""
    found: dict[str, float] = {}
    for name in sums:
        if name.startswith(SOURCE) and (pair := sums[name])[1]:
            source = name.removeprefix(SOURCE)
            found[f"train/loss/{'text' if source == TEXT else source}"] = pair[0] / pair[1]
    return found


def rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """The highest rate, and that of each pattern of the stage where they differ."""
    found: dict[str, float] = {}
    for group in optimizer.param_groups:
        pattern = str(group.get("name", "")).partition(" (")[0]
        found[pattern] = max(found.get(pattern, 0.0), float(group["lr"]))
    several = found if len(set(found.values())) > 1 else {}
    return {"train/lr": max(found.values()), **{f"train/lr/{pattern}": rate for pattern, rate in several.items()}}


def throughputs(trainer: Trainer) -> list[Throughput]:
    """The callbacks that count what steps take."""
    return [each for each in trainer.callbacks if isinstance(each, Throughput)]  # pyright: ignore


def log_row(trainer: Trainer, row: Mapping[str, float], step: int, device: torch.device) -> None:
    """Gives the row of a step, and how fast steps were since the row before, to all loggers."""
    more = {name: value for each in throughputs(trainer) for name, value in each.row(device).items()}
    for logger in trainer.loggers:
        logger.log_metrics({**row, **more}, step=step)


def show_loss(trainer: Trainer, loss: float) -> None:
    """What `self.log` would tell callbacks and progress bars, in a twentieth of the time; one that is no number, whose
    step is skipped, is not told."""
    shown: Any = trainer
    if math.isfinite(loss):
        shown.callback_metrics["train/loss"] = shown.progress_bar_metrics["train/loss"] = torch.tensor(loss)
