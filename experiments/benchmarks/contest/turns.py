"""Contenders take turns, step by step: what else the machine does meets all of them alike."""

from __future__ import annotations

import json
import os
import signal
import statistics
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import torch

from contest.gate import Gate, OtherGate
from contest.ranks import Ranks, end
from contest.report import sentence
from contest.workload import Workload

TOLERANCE = {"fp32": 1e-5, "bf16": 1e-3}
"""Of the loss of a step, relative to that of the contender that others are compared with."""


@dataclass(frozen=True)
class Contender:
    name: str
    runner: str
    """A module of this package. What it cannot import is told, and the others go on."""
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
        self.log, self._ended = self.folder / "log.txt", False
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
        log = os.open(self.log, os.O_CREAT | os.O_WRONLY)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout, sys.stderr = (os.fdopen(each, "w", 1, closefd=False) for each in (1, 2))
        try:
            torch.set_num_threads(threads)
            ranks = Ranks(workload.ranks)
            if not ranks.first:
                gate = OtherGate()
            gate.others = ranks.others
            runner = import_module(f"contest.{self.contender.runner}")
            runner.run(workload, self.contender.settings, self.folder, gate)
        except BaseException as error:
            traceback.print_exc()
            gate.say(state="absent", why=reason(error))
            end(gate.others)
        finally:
            sys.stderr.flush()
            os._exit(1)

    def hear(self) -> dict[str, Any]:
        """What it says next; where it ended, the state absent, and why."""
        if line := self._says.readline():
            return json.loads(line)
        return {"state": "absent", "why": f"its process {self._ending()}, expected a step"}

    def _ending(self) -> str:
        """How it ended; waits until it did."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.id, 0)[1])
        self._ended = True
        return f"ended with exit code {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"

    def step(self) -> dict[str, Any]:
        with suppress(BrokenPipeError):  # it ended, and hearing tells how
            os.write(self._tell, b"1")
        return self.hear()

    def close(self) -> None:
        if not self._ended:
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


def reason(error: BaseException) -> str:
    """Why a contender is left out, in a part of a sentence."""
    while isinstance(error, ImportError) and error.__cause__:  # transformers imports when a name is asked for
        error = error.__cause__
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"it needs {error.name}, which is not installed"
    said = " ".join(str(error).split())
    short = said if len(said) <= 200 else f"{said[:200]} ..."
    kind = type(error).__name__
    return f"it was refused: {short}" if isinstance(error, ValueError) else f"{kind}: {short}" if short else kind


def unusable(contenders: Sequence[Contender]) -> dict[str, str]:
    """Runners that cannot be imported, and why.

    Imported here, once, before contenders are forked: the memory of libraries then counts alike for all.
    """
    found = {}
    for runner in dict.fromkeys(each.runner for each in contenders):
        try:
            import_module(f"contest.{runner}")
        except Exception as error:
            found[runner] = reason(error)
    return found


def race(workload: Workload, contenders: Sequence[Contender], folder: Path, threads: int) -> list[dict[str, Any]]:
    """Of each contender what its counted steps took, beside one of them.

    That is the first one that is not left out and keeps the order of the samples.

    Args:
        folder: Holds the weights; each contender gets a folder there.

    Returns:
        name, settings; `absent`, why it cannot train here, and `log`, the end of what it printed; or else cpu_s and
        wall_s of each step, their medians (in an order of its own: their means, at the mean number of tokens of the
        workload's steps), `beside`, the one that it is compared with, `speedup` (CPU-seconds of that one / of this
        one), losses, `loss_difference` (the largest relative one of a step), `agrees`; peak and own in bytes (`Gate`),
        `memory_ratio` (own of this one / of that one).

    Raises:
        SystemExit: No contender is left; says why each is.
    """
    processes: list[Process | None] = []
    found: list[dict[str, Any]] = []
    missing = unusable(contenders)

    def heard(process: Process, one: dict[str, Any], said: dict[str, Any]) -> None:
        if said["state"] == "absent":
            one.pop("steps")
            log = process.log.read_text(encoding="utf-8", errors="replace")[-3000:]
            one.update(absent=said["why"], log=log)
        elif said["state"] == "step":
            one["steps"].append(said)

    try:
        for contender in contenders:
            one: dict[str, Any] = {"name": contender.name, "settings": contender.settings}
            found.append(one)
            if contender.runner in missing:
                one["absent"] = missing[contender.runner]
                processes.append(None)
                continue
            others = [each for each in processes if each]
            processes.append(process := Process(contender, workload, folder, threads, others))
            one["steps"] = []
            # One after the other: what one compiles is not to disturb another.
            heard(process, one, process.hear())
        for number in range(workload.all_steps):
            turn = list(zip(processes, found, strict=True))
            for process, one in turn if number % 2 else turn[::-1]:
                if process and "steps" in one:
                    heard(process, one, process.step())
    finally:
        for process in processes:
            if process:
                process.close()
    pairs = list(zip(found, contenders, strict=True))
    for one, contender in pairs:
        if "steps" in one:
            _sum_up(one, contender.workload or workload, contender)
    left = [pair for pair in pairs if "absent" not in pair[0]]
    if not left:
        raise SystemExit("\n".join(sentence(one) for one in found))
    first = min(left, key=lambda pair: pair[1].own_order)
    for one, contender in left:
        _compare(one, contender, *first)
    return found


def _sum_up(one: dict[str, Any], workload: Workload, contender: Contender) -> None:
    steps = one.pop("steps")
    counted = steps[workload.warmup :]
    for name in ("cpu", "wall"):
        took = one[f"{name}_s"] = [each[name] for each in counted]
        one[f"median_{name}_s"] = statistics.median(took)
        if contender.own_order and counted[0]["tokens"]:
            # Batches of samples of like length differ widely: a median step is none of the mean length.
            one["tokens"] = [each["tokens"] for each in counted]
            tokens = sum(one["tokens"])
            one[f"median_{name}_s"] = sum(took) * workload.counts()["tokens"] / tokens
    one.update(losses=[each["loss"] for each in steps], peak=steps[-1]["peak"], own=steps[-1]["own"])


def _compare(one: dict[str, Any], contender: Contender, first: dict[str, Any], reference: Contender) -> None:
    one["beside"] = first["name"]
    for name in ("cpu", "wall"):
        one["speedup" if name == "cpu" else "speedup_wall"] = first[f"median_{name}_s"] / one[f"median_{name}_s"]
    one["memory_ratio"] = one["own"] / first["own"] if first["own"] else None
    if contender.own_order or reference.own_order:
        one.update(loss_difference=None, agrees=True)
        return
    pairs = zip(one["losses"], first["losses"], strict=True)
    difference = max(abs(mine - other) / abs(other) for mine, other in pairs)
    tolerance = max(TOLERANCE[contender.precision], TOLERANCE[reference.precision])
    one.update(loss_difference=difference, agrees=difference <= tolerance)
