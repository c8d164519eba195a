"""Processes that read samples ahead: on which sample each of them is, and what became of one that was lost.

A worker writes the name of each sample that it begins into memory that it shares with the process that trains. There it
stands when the worker is killed, crashes, leaves, or never comes back.
"""

from __future__ import annotations

import ctypes
import signal
import sys
from collections.abc import Iterator
from multiprocessing.sharedctypes import RawArray
from typing import Any

from torch.utils.data._utils.signal_handling import _remove_worker_pids
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

ROOM = 512
"""Bytes of a name."""
PR_SET_PDEATHSIG = 1

_own: tuple[Any, int] | None = None
"""In a worker, the memory and its number."""


class LostWorker(ValueError):
    """A worker that did not send its batch; the message names it and its sample."""


class WorkerSamples:
    """What each worker of a loader is on; called by each as it begins (`worker_init_fn` of torch's DataLoader).

    Args:
        workers: how many there are.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._names: Any = RawArray(ctypes.c_char, max(1, workers) * ROOM)

    def __call__(self, worker: int) -> None:
        global _own
        _own = self._names, worker
        if sys.platform == "linux":
            # A worker that is stuck would not see that the process that trains is gone.
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        begin("the first sample")

    def of(self, worker: int) -> str:
        """The sample that a worker is on, or was on last."""
        return self._names[worker * ROOM : (worker + 1) * ROOM].split(b"\0")[0].decode("utf-8", errors="replace")


def begin(name: str) -> None:
    """Says in a worker what it begins with; nothing elsewhere."""
    if _own is not None:
        names, worker = _own
        names[worker * ROOM : (worker + 1) * ROOM] = name.encode("utf-8", errors="replace")[: ROOM - 1].ljust(
            ROOM, b"\0"
        )


def watched(batches: _MultiProcessingDataLoaderIter, samples: WorkerSamples, timeout: float) -> Iterator[Any]:
    """The batches of a DataLoader's iterator; a worker that is lost is named with its sample, and none outlives it.

    Args:
        timeout: the loader's, in seconds.

    Raises:
        LostWorker: one died, or did not send a batch in time.
    """
    try:
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                told = lost(batches, samples)
                if not told and timeout and "timed out" in str(error):
                    told = _stuck(batches, samples, timeout)
                if not told:
                    raise
                _kill_all(batches)
                raise LostWorker(told) from error
            yield batch
    finally:
        # Whoever holds the error would hold them all.
        batches._shutdown_workers()


def lost(batches: _MultiProcessingDataLoaderIter, samples: WorkerSamples) -> str:
    """What became of the first worker that has died, in a sentence; empty where all are alive."""
    for number, worker in enumerate(batches._workers):
        if (code := worker.exitcode) is not None:
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"left with exit code {code}"
            memory = ", which is what Linux does where memory runs out" if code == -signal.SIGKILL else ""
            return f"{_named(number, samples)} {how}{memory}; it was on {samples.of(number)}"
    return ""


def _stuck(batches: _MultiProcessingDataLoaderIter, samples: WorkerSamples, timeout: float) -> str:
    # torch hands out batches in their order, and knows whose turn it is.
    number = batches._task_info[batches._rcvd_idx][0]
    return (
        f"{_named(number, samples)} sent no batch in {timeout:g} s (hardware.worker_timeout); it is on"
        f" {samples.of(number)}"
    )


def _kill_all(batches: _MultiProcessingDataLoaderIter) -> None:
    """What torch does at the end, without waiting for any: others may be stuck too, and one that was killed may hold
    what torch would wait for."""
    batches._shutdown = True
    _remove_worker_pids(id(batches))
    batches._worker_pids_set = False
    for worker in batches._workers:
        worker.kill()
    for worker in batches._workers:
        worker.join(5)
    for queue in batches._index_queues:
        queue.cancel_join_thread()
        queue.close()
    if hasattr(batches, "_pin_memory_thread"):
        batches._pin_memory_thread_done_event.set()


def _named(number: int, samples: WorkerSamples) -> str:
    return f"data loading worker {number} of {samples.workers} (hardware.workers)"
