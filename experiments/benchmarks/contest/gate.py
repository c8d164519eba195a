"""Where a contender waits for its turn, in its own process: it measures from one passage to the next."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import time
from pathlib import Path
from typing import BinaryIO

import torch
import torch.distributed as dist

from contest.ranks import end, used


class Gate:
    """A loop passes it once before each step; what lies between two passages is the step, whichever part takes it.

    Args:
        steps: After so many the process ends.
        told: A byte for each step that may be taken.
        says: Takes a line of JSON for each step: cpu (of loader workers too) and wall in seconds, loss, tokens (None:
            those of the workload); peak and own, in bytes, are the most that was resident since the first passage, and
            that without what was there when this was made and without libraries and other files; on a GPU both are the
            peak of torch's allocator.
        device: cpu or cuda, which is waited for.
    """

    def __init__(self, steps: int, told: BinaryIO, says: BinaryIO, device: str) -> None:
        self._left, self._told, self._says, self._begin = steps, told, says, (0.0, 0.0)
        self.others: list[int] = []
        """Processes of other ranks, whose CPU-seconds count too."""
        self._device, self._inherited = device, memory("RssAnon")

    def say(self, **what: object) -> None:
        self._says.write(json.dumps(what).encode() + b"\n")
        self._says.flush()

    def passed(self, loss: float | None, tokens: int | None = None) -> None:
        """Before a step; `loss` and `tokens` are those of the step before. Ends the process behind the last one."""
        if self._device == "cuda":
            torch.cuda.synchronize()
        cpu, wall = self._used() - self._begin[0], time.perf_counter() - self._begin[1]
        if loss is None:
            self._forget()
            self.say(state="ready")
        else:
            self.say(state="step", cpu=cpu, wall=wall, loss=loss, tokens=tokens, **self._memory())
            self._left -= 1
        if not self._left or not self._told.read(1):
            end(self.others)
            os._exit(0)
        if self.others:
            dist.barrier()
        self._begin = self._used(), time.perf_counter()

    def _used(self) -> float:
        ended = os.times()
        workers = [each.pid for each in multiprocessing.active_children() if each.pid]
        children = ended.children_user + ended.children_system + sum(used(each) for each in (*self.others, *workers))
        return time.process_time() + children

    def _memory(self) -> dict[str, int]:
        if self._device == "cuda":
            return dict.fromkeys(("peak", "own"), torch.cuda.max_memory_allocated())
        peak = memory("VmHWM")
        return {"peak": peak, "own": peak - memory("RssFile") - self._inherited}

    def _forget(self) -> None:
        """The peak until here: reading the weights is no part of a step."""
        file = Path("/proc/self/clear_refs")
        if self._device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        elif file.is_file():
            file.write_text("5")


class OtherGate(Gate):
    """Of a rank that is not the first: it goes as far as that one lets it."""

    def __init__(self) -> None:
        pass

    def passed(self, loss: float | None, tokens: int | None = None) -> None:
        dist.barrier()

    def say(self, **what: object) -> None:
        pass


def memory(field: str) -> int:
    """Bytes of this process, as Linux tells them: RssAnon are its own, RssFile libraries and other files, VmHWM is the
    most that was resident of both; 0 elsewhere than on Linux."""
    status = Path("/proc/self/status")
    # Not getrusage: its peak is inherited from the process that started this one.
    found = re.search(rf"{field}:\s+(\d+) kB", status.read_text()) if status.is_file() else None
    return 1024 * int(found[1]) if found else 0
