"""Contenders take turns, step by step: what else the machine does meets all of them alike."""

from __future__ import annotations

import json
import os
import signal
import statistics
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import torch

from contest.gate import Gate, OtherGate
from contest.ranks import Ranks
from contest.workload import Workload

TOLERANCE = {"fp32": 1e-5, "bf16": 1e-3}
"""Of the loss of a step, relative to that of the first contender."""


@dataclass(frozen=True)
class Contender:
    name: str
    runner: str
    """A module of this package."""
    settings: dict[str, Any] = field(default_factory=dict)
    precision: str = "fp32"
    own_order: bool = False
    """Whether it takes other samples in a step, so that its losses are those of other steps."""
    workload: Workload | None = None
    """In place of the workload of all."""


class Process:
    """A contender in a process of its own: a copy of this one, which has imported all and computed nothing.

    So libraries count alike for all, and no pool of threads is lost.
    """

    def __init__(
        self, contender: Contender, workload: Workload, folder: Path, threads: int, others: Sequence[Process]
    ) -> None:
        workload = contender.workload or workload
        self.contender = contender
        self.folder = folder / contender.name.replace(" ", "_")
        self.folder.mkdir()
        (told, self._tell), (self._hear, says) = os.pipe(), os.pipe()
        self.id = os.fork()
        if not self.id:
            # Those of the others too, or they would wait on when the parent is gone.
            for each in (self._hear, self._tell, *(other._tell for other in others)):
                os.close(each)
            self._run(
                workload,
                threads,
                Gate(workload.all_steps, os.fdopen(told, "rb"), os.fdopen(says, "wb"), workload.device),
            )
        os.close(told)
        os.close(says)
        self._says = os.fdopen(self._hear)

    def _run(self, workload: Workload, threads: int, gate: Gate) -> NoReturn:
        log = os.open(self.folder / "log.txt", os.O_CREAT | os.O_WRONLY)
        os.dup2(log, 1)
        os.dup2(log, 2)
        try:
            torch.set_num_threads(threads)
            ranks = Ranks(workload.ranks)
            if not ranks.first:
                gate = OtherGate()
            gate.others = ranks.others
            runner = import_module(f"contest.{self.contender.runner}")
            runner.run(workload, self.contender.settings, self.folder, gate)
        except ModuleNotFoundError as error:
            gate.say(state="absent", why=f"needs {error.name}, which is not installed")
        except ValueError as error:
            gate.say(state="absent", why=f"refused: {error}")
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(1)

    def hear(self) -> dict[str, Any]:
        """What it says next.

        Raises:
            SystemExit: It ended.
        """
        if not (line := self._says.readline()):
            last = (self.folder / "log.txt").read_text(encoding="utf-8", errors="replace")[-3000:]
            raise SystemExit(f"{self.contender.name}: its process ended, expected a step\n{last}")
        return json.loads(line)

    def step(self) -> dict[str, Any]:
        os.write(self._tell, b"1")
        return self.hear()

    def close(self) -> None:
        os.kill(self.id, signal.SIGKILL)
        os.waitpid(self.id, 0)
        os.close(self._tell)
        self._says.close()


def apart(work: Callable[[], object]) -> None:
    """Does it in a process of its own.

    Raises:
        SystemExit: It failed, and has said why.
    """
    if not (child := os.fork()):
        done = 1
        try:
            work()
            done = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(done)
    if os.waitpid(child, 0)[1]:
        raise SystemExit("a process ended with an error")


def race(workload: Workload, contenders: Sequence[Contender], folder: Path, threads: int) -> list[dict[str, Any]]:
    """Of each contender what its counted steps took, beside the first one.

    Args:
        folder: Holds the weights; each contender gets a folder there.

    Returns:
        name, settings; `absent`, why it cannot train here; or else cpu_s and
        wall_s of each step, their medians, `speedup` (CPU-seconds of the first / of this one), losses,
        `loss_difference` (the largest relative one of a step), `agrees`; peak and own in bytes (`Gate`),
        `memory_ratio` (own of this one / of the first).
    """
    processes: list[Process] = []
    try:
        found = []
        for contender in contenders:
            processes.append(process := Process(contender, workload, folder, threads, processes))
            # One after the other: what one compiles is not to disturb another.
            first = process.hear()
            one: dict[str, Any] = {"name": contender.name, "settings": contender.settings}
            found.append({**one, **({"steps": []} if first["state"] == "ready" else {"absent": first["why"]})})
        for number in range(workload.all_steps):
            turn = list(zip(processes, found, strict=True))
            for process, one in turn if number % 2 else turn[::-1]:
                if "steps" in one:
                    one["steps"].append(process.step())
    finally:
        for process in processes:
            process.close()
    summed = [_summary(one, workload.warmup) if "steps" in one else one for one in found]
    return [_compared(one, summed[0], contender) for one, contender in zip(summed, contenders, strict=True)]


def _summary(one: dict[str, Any], warmup: int) -> dict[str, Any]:
    steps = one.pop("steps")
    for name in ("cpu", "wall"):
        one[f"{name}_s"] = [each[name] for each in steps[warmup:]]
        one[f"median_{name}_s"] = statistics.median(one[f"{name}_s"])
    return {**one, "losses": [each["loss"] for each in steps], "peak": steps[-1]["peak"], "own": steps[-1]["own"]}


def _compared(one: dict[str, Any], first: dict[str, Any], contender: Contender) -> dict[str, Any]:
    if "absent" in one:
        return one
    one["speedup"] = first["median_cpu_s"] / one["median_cpu_s"]
    one["speedup_wall"] = first["median_wall_s"] / one["median_wall_s"]
    one["speedup_total"] = sum(first["cpu_s"]) / sum(one["cpu_s"])
    one["memory_ratio"] = one["own"] / first["own"] if first["own"] else None
    if contender.own_order:
        return {**one, "loss_difference": None, "agrees": True}
    pairs = zip(one["losses"], first["losses"], strict=True)
    one["loss_difference"] = max(abs(mine - other) / abs(other) for mine, other in pairs)
    return {**one, "agrees": one["loss_difference"] <= TOLERANCE[contender.precision]}
