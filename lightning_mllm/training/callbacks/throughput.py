"""How fast a stage trains, and what it waits for, by the clock of the host."""

from __future__ import annotations

import resource
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import PassThroughProfiler

from lightning_mllm.contracts import Batch
from lightning_mllm.evaluation.flops import CountedProducts, measured_peak, peak_flops
from lightning_mllm.training.compilation import graphs_compiled

GB, TERA = 1e9, 1e12
COUNTED_STEPS = 3
"""Optimizer steps whose operations are counted; a compiled block runs uncompiled in them."""
FETCH = "train_dataloader_next"
"""How Lightning's name for taking the next batch from the loader ends."""
MEMORY_EVERY = 1.0
"""Seconds between two readings of the host's memory, which can take half a millisecond."""


class FetchClock(PassThroughProfiler):
    """Counts the seconds that training waits for its loader."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0
        self._since: float | None = None
        self._nothing = nullcontext()

    def profile(self, action_name: str) -> AbstractContextManager[Any]:  # pyright: ignore
        """Nothing: Lightning takes the time of a fetch by `start` and `stop`, and of some 60 hooks a step by this."""
        return self._nothing

    def start(self, action_name: str) -> None:
        if action_name.endswith(FETCH):
            self._since = time.perf_counter()

    def stop(self, action_name: str) -> None:
        if action_name.endswith(FETCH) and self._since is not None:
            self.seconds += time.perf_counter() - self._since
            self._since = None


class Throughput(Callback):
    """Adds to the logged row of a step, over the steps since the row before:

    throughput/tokens_per_second      real tokens of all ranks, image slots included and padding not
    throughput/supervised_tokens_per_second   those that are learned
    throughput/images_per_second      images of all ranks, views counted one by one
    throughput/seconds_per_step
    throughput/data_wait              share of the time in which rank 0 waited for its loader
    throughput/tflops                 10^12 operations a second of a rank that the net needs (`CountedProducts`), as
                                      many a token as in the stage's first steps
    throughput/mfu                    these, as a share of what the data sheet promises for bfloat16 without sparsity;
                                      on a GPU that is listed (`peak_flops`)
    throughput/mfu_measured           these, as a share of `measured_peak` in the dtype of the plan, measured once
    throughput/graphs_compiled        since the process began, with hardware.compile
    memory/device_gb                  peak of rank 0's allocator, in 10^9 bytes; on a GPU
    memory/host_gb                    peak of the resident memory of rank 0's process, without its workers, read once a
                                      second

    Validation and the time between two processes are not counted. After the steps whose operations are counted, nothing
    waits for the device: what it has counted is read with the losses, once a step. The time a step takes is that
    between two such readings.
    """

    def __init__(self) -> None:
        self._fetch: FetchClock | None = None
        self._began = self._fetched = self._paused = 0.0
        self._paused_at: float | None = None
        self._steps, self._counts = 0, {"tokens": 0.0, "supervised_tokens": 0.0, "images": 0.0}
        self._counted, self._read, self._left = 0.0, 0, COUNTED_STEPS
        """Operations of the steps that are counted, the tokens that they read, and how many are left."""
        self._counter: CountedProducts | None = None
        self._peak, self._compiles = 0.0, False
        self._host, self._host_read = 0.0, float("-inf")
        self._ranks = 1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        own: Any = trainer
        if stage == "fit" and type(own.profiler) is PassThroughProfiler:
            own.profiler = FetchClock()
        self._fetch = own.profiler if isinstance(own.profiler, FetchClock) else None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        plan = getattr(pl_module, "parallel", None)
        self._compiles = bool(getattr(plan, "compile", False))
        half = "bf16" in (str(trainer.precision) + getattr(plan, "precision", ""))
        device = trainer.strategy.root_device
        self._peak = measured_peak(device, torch.bfloat16 if half else torch.float32)
        self._ranks = trainer.world_size

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restart()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._paused_at = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._paused_at is not None:
            self._paused += time.perf_counter() - self._paused_at
            self._paused_at = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        if self._left:
            self._counter = CountedProducts()
            self._counter.__enter__()
            self._read += int((batch.segments > 0).sum())

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: object) -> None:
        self._stop_counting()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop_counting()

    def _stop_counting(self) -> None:
        counter, self._counter = self._counter, None
        if counter is not None:
            counter.__exit__(None, None, None)
            self._counted += counter.operations

    def count(self, counts: dict[str, float]) -> None:
        """What an optimizer step has taken: "tokens", "supervised_tokens" and "images", of all ranks."""
        self._steps += 1
        self._left = max(0, self._left - 1)
        for name in self._counts:
            self._counts[name] += counts[name]

    def row(self, device: torch.device) -> dict[str, float]:
        """Of the steps since the row before; the next row begins here."""
        seconds = max(time.perf_counter() - self._began - self._paused, 1e-9)
        found = {f"throughput/{name}_per_second": number / seconds for name, number in self._counts.items()}
        found["throughput/seconds_per_step"] = seconds / max(self._steps, 1)
        if self._fetch is not None:
            found["throughput/data_wait"] = min(1.0, (self._fetch.seconds - self._fetched) / seconds)
        operations = self._counts["tokens"] * self._counted / max(self._read, 1) / seconds / self._ranks
        found["throughput/tflops"] = operations / TERA
        if self._peak:
            found["throughput/mfu_measured"] = operations / self._peak
        if device.type == "cuda":
            if (peak := peak_flops(torch.cuda.get_device_name(device))) is not None:
                found["throughput/mfu"] = operations / peak
            found["memory/device_gb"] = torch.cuda.max_memory_allocated(device) / GB
        if self._compiles:
            found["throughput/graphs_compiled"] = float(graphs_compiled())
        self._restart()
        if self._began - self._host_read >= MEMORY_EVERY:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            self._host, self._host_read = peak * (1 if sys.platform == "darwin" else 1024) / GB, self._began
        found["memory/host_gb"] = self._host
        return found

    def _restart(self) -> None:
        self._began, self._paused, self._steps = time.perf_counter(), 0.0, 0
        self._fetched = 0.0 if self._fetch is None else self._fetch.seconds
        self._counts = dict.fromkeys(self._counts, 0.0)
