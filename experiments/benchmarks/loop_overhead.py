"""What Lightning and this project's bookkeeping add to a training step: a step whose net is next to nothing.

    mllm bench loop_overhead [--steps 300 --share-of 50 --to FOLDER]

The loop is that of `mllm fit`, with its callbacks and its table of metrics, but for checkpoints; its forward pass is a
sum over the trained tensors of a tiny LLaVA. Between any two of its steps, a bare loop takes the same step on tensors
of the same shapes: gradients to none, sum, backward, norm of the gradients, AdamW. The difference is the overhead, in
CPU-milliseconds, and as a share of a step of `--share-of` milliseconds. What guards a run (signals, skipped steps, what
a failed step needs) is switched off in every second step: the difference between the two kinds of steps is its cost.
Written to FOLDER: loop_overhead.json.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from contest.report import machine, write_json
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn

from data_modules.loader import StepsAhead
from lightning_mllm import signals
from lightning_mllm.architectures.llava import LLaVA
from lightning_mllm.contracts import Batch, Output, Term
from lightning_mllm.processing.full_rows import full_batch
from lightning_mllm.training.callbacks.failed_step import FailedStep
from lightning_mllm.training.callbacks.metrics_csv import MetricsCsv
from lightning_mllm.training.callbacks.progress import StageProgress
from lightning_mllm.training.callbacks.rng import RandomStates
from lightning_mllm.training.callbacks.signals import StageSignals
from lightning_mllm.training.callbacks.throughput import Throughput
from lightning_mllm.training.callbacks.tracking import Tracking
from lightning_mllm.training.skipped_steps import SkippedSteps
from lightning_mllm.training.stage import StageSettings

WARMUP = 10


def total(parameters: Sequence[Tensor]) -> Tensor:
    """All that the nets of both loops compute."""
    return torch.stack([each.sum() for each in parameters]).sum()


class NextToNothing(LLaVA):
    """A tiny LLaVA whose loss is a sum of what it trains."""

    def on_train_start(self) -> None:
        super().on_train_start()
        # To look for them in each step is nothing that a net does.
        self.summed = [each for each in self.net.parameters() if each.requires_grad]

    def forward(self, batch: Batch) -> Output:
        counts = batch.layout.supervised.counts
        loss = total(self.summed)
        return Output(terms={"language": Term(losses=loss * counts, tokens=counts)})


class Repeated(LightningDataModule):
    """One batch, again and again."""

    def __init__(self, batch: Batch, steps: int) -> None:
        super().__init__()
        self.batch, self.optimizer_steps = batch, steps

    def train_dataloader(self) -> StepsAhead:
        return StepsAhead([self.batch] * self.optimizer_steps, 1)


class Unguarded(SkippedSteps):
    """Takes every step, and looks at none."""

    def saw(self, batch: Batch, output: Output) -> None:
        pass

    def skips(self, trainer: Trainer, loss: float, norm: float, steps: int) -> bool:
        return False


class EverySecond(FailedStep):
    """Keeps what a step ended with of guarded steps alone."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        if batch_idx % 2 == 0:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


class Turns(Callback):
    """Takes the time of each step, lets the bare loop take one in between, and guards every second step."""

    def __init__(self) -> None:
        self.guards = (SkippedSteps(), signals.SIGNALS), (Unguarded(), ())
        self.loop: list[float] = []
        self.bare: list[float] = []
        self.begin = 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.parameters = [nn.Parameter(each.detach().clone()) for each in pl_module.parameters() if each.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-9, fused=True)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        now = time.process_time()
        self.loop.append(now - self.begin)
        self.optimizer.zero_grad()
        total(self.parameters).backward()
        torch.nn.utils.get_total_norm([each.grad for each in self.parameters if each.grad is not None]).item()
        self.optimizer.step()
        pl_module.skipped, signals.SIGNALS = self.guards[batch_idx % 2]
        self.begin = time.process_time()
        self.bare.append(self.begin - now)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="that are counted (300)")
    parser.add_argument("--share-of", type=float, default=50.0, help="milliseconds of a step (50)")
    parser.add_argument("--to", type=Path, default=Path("runs/benchmarks/loop_overhead"))
    given = parser.parse_args(arguments)
    steps, turns = given.steps + WARMUP + 1, Turns()
    module = NextToNothing.tiny(stage=StageSettings(name="instruct", steps=steps, lr=1e-9), max_length=64)
    before = machine(torch.get_num_threads())
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=1,
            log_every_n_steps=1,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=folder,
            logger=MetricsCsv(f"{folder}/metrics.csv"),
            callbacks=[RandomStates(), Throughput(), Tracking(), StageProgress(), StageSignals(), EverySecond(), turns],
        )
        trainer.fit(module, datamodule=Repeated(full_batch(module.processor, 4), steps))
    signals.SIGNALS = turns.guards[0][1]
    # What lies before the first passage is no step.
    loop, bare = ([1e3 * each for each in found[1 + WARMUP :]] for found in (turns.loop, turns.bare))
    # The first step that is counted is a guarded one: the time of step N is taken as step N + 1 begins.
    guarded, unguarded = (statistics.median(loop[WARMUP % 2 + k :: 2]) for k in (0, 1))
    overhead = guarded - statistics.median(bare)
    found = {
        "machine": before,
        "tensors": len(turns.parameters),
        "loop_ms": guarded,
        "guards_ms": guarded - unguarded,
        "bare_ms": statistics.median(bare),
        "overhead_ms": overhead,
        "share": overhead / given.share_of,
        "share_of_ms": given.share_of,
    }
    given.to.mkdir(parents=True, exist_ok=True)
    write_json(given.to / "loop_overhead.json", found)
    shown = f"{found['loop_ms']:.2f} ms a step, {found['bare_ms']:.2f} ms bare: {overhead:.2f} ms of overhead"
    guards = f"guards {found['guards_ms']:.2f} ms, {found['guards_ms'] / given.share_of:.2%}"
    print(
        f"{shown}, {found['share']:.1%} of {given.share_of:g} ms; {guards}", f"{given.to}/loop_overhead.json", sep="\n"
    )
    return found


if __name__ == "__main__":
    main()
