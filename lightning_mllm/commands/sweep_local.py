"""`mllm sweep FILE --local`: the trials of a sweep as processes of this machine, each the command of W&B's agent.

The journal (commands/trials.py) is written before a trial begins and when it ends. A sweep that was stopped or killed
at any moment goes on by the same command: what is finished is kept, and what was begun goes on from its checkpoint.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from lightning_mllm.commands.config import ConfigError
from lightning_mllm.commands.sweep_agent import TRIAL_DIR
from lightning_mllm.commands.sweep_file import SweepFile, stage_of
from lightning_mllm.commands.sweep_search import propose, to_stop, waits
from lightning_mllm.commands.trials import LOG, Trial, held, last_words, read_trials, take_metric, write_trial
from lightning_mllm.signals import Stopped

MOST_FAILURES = 3
"""In a row: then the fault is hardly one of the values."""
GRACE = 60.0
"""Seconds that a trial has for its last checkpoint when it is told to end."""
POLL = 0.5


class Process(Protocol):
    """Of a trial."""

    def poll(self) -> int | None: ...

    def terminate(self) -> None: ...

    def kill(self) -> None: ...

    def wait(self, timeout: float | None = None) -> int: ...


Start = Callable[[list[str], Path], Process]
"""The command and the folder of a trial -> its process."""


def start_process(command: list[str], folder: Path, lock: int, threads: int) -> Process:
    """Starts the command with `mllm` and `python` of this environment first on the path; its output goes to `log.txt`.

    It is in a process group of its own, so that Ctrl-C reaches the sweep alone, which then tells it to end.

    Args:
        lock: A file that it holds open.
        threads: Of its arithmetic, unless OMP_NUM_THREADS is set.
    """
    here = os.pathsep.join(dict.fromkeys([str(Path(sys.argv[0]).parent.absolute()), str(Path(sys.executable).parent)]))
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ, TRIAL_DIR: str(folder)}
    environment["PATH"] = f"{here}{os.pathsep}{os.environ.get('PATH', '')}"
    with open(folder / LOG, "ab") as log:
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=0,
            pass_fds=(lock,),
        )


class LocalSweep:
    """The trials of a sweep, up to `count` of them, `parallel` at once.

    Args:
        sweep: A checked file.
        folder: Where they are kept.
        count: How many; None is all of a grid.
        seed: Of the search.
        start: Starts the process of a trial; None is `start_process`.

    Raises:
        ConfigError: The search has no end.
    """

    def __init__(
        self, sweep: SweepFile, folder: Path, *, count: int | None, parallel: int, seed: int, start: Start | None = None
    ) -> None:
        if count is None and sweep.method != "grid":
            raise ConfigError(f"--count: found none, expected how many trials of a {sweep.method} search")
        self.sweep, self.folder, self.seed = sweep, folder, seed
        self.count, self.parallel, self.start = count, parallel, start
        self.trials = read_trials(folder)
        self.again = [each for each in self.trials if each.state in ("running", "failed")]
        """Those that are begun, or failed, and are taken up first."""
        self.running: dict[int, tuple[Trial, Process, float]] = {}

    def run(self) -> list[Trial]:
        """Runs them; gives them all, by number.

        Raises:
            ConfigError: Several failed in a row; names the log of the last one.
        """
        with _sigterm_stops():
            try:
                while self._fill() or self.running:
                    time.sleep(POLL)
                    self._look()
            finally:
                self._end_all()
        return self.trials

    def _fill(self) -> bool:
        """Starts what may start; whether anything did."""
        started = False
        while len(self.running) < self.parallel and (trial := self._next()) is not None:
            self._begin(trial)
            started = True
        return started

    def _next(self) -> Trial | None:
        if self.again:
            return self.again.pop(0)
        number = len(self.trials) + 1
        if (self.count is not None and number > self.count) or waits(self.sweep, self.trials, number, self.parallel):
            return None
        values = propose(self.sweep, self.trials, number, seed=self.seed, parallel=self.parallel)
        if values is None:
            return None
        trial = Trial(number=number, values=values, stage=stage_of(self.sweep, values))
        self.trials.append(trial)
        return trial

    def _begin(self, trial: Trial) -> None:
        goes_on = "goes on" if (self.folder / trial.name / LOG).is_file() else "begins"
        trial.state, trial.said = "running", ""
        write_trial(self.folder, trial)
        command, folder = self.sweep.command(trial.values), (self.folder / trial.name).absolute()
        print(f"trial {trial.number} {goes_on}: {self.folder / trial.name / LOG}", flush=True)
        lock = held(self.folder, trial)
        try:
            threads = max(1, (os.cpu_count() or 1) // self.parallel)
            process = self.start(command, folder) if self.start else start_process(command, folder, lock, threads)
        finally:
            os.close(lock)
        self.running[trial.number] = trial, process, time.monotonic()

    def _look(self) -> None:
        for trial, process, began in list(self.running.values()):
            if (code := process.poll()) is not None:
                self._conclude(trial, code, time.monotonic() - began)
        if self.sweep.stops_early and self.running:
            for trial, _, _ in self.running.values():
                take_metric(self.folder, trial, self.sweep.metric)
            for number in to_stop(self.sweep, self.trials):
                if number in self.running:
                    self._stop(*self.running[number])

    def _conclude(self, trial: Trial, code: int, seconds: float) -> None:
        del self.running[trial.number]
        trial.seconds += seconds
        take_metric(self.folder, trial, self.sweep.metric)
        trial.state = "finished"
        if code != 0:
            trial.state, trial.said = "failed", last_words(self.folder, trial)
        elif trial.value is None:
            trial.state, trial.said = "failed", f"{self.sweep.metric} is absent or not finite"
        self._write(trial)
        latest = [each for each in self.trials if each.is_over][-MOST_FAILURES:]
        if len(latest) == MOST_FAILURES and all(each.state == "failed" for each in latest):
            log = self.folder / trial.name / LOG
            raise ConfigError(f"{log}: found the end of {MOST_FAILURES} failed trials in a row: {trial.said}")

    def _stop(self, trial: Trial, process: Process, began: float) -> None:
        """Early: noted before the process is told, for a killed sweep shall not take it up again."""
        trial.state, trial.seconds = "stopped", trial.seconds + time.monotonic() - began
        self._write(trial)
        _end(process)
        del self.running[trial.number]

    def _write(self, trial: Trial) -> None:
        write_trial(self.folder, trial)
        value = "" if trial.value is None else f", {self.sweep.metric} {trial.value:.4g}"
        print(f"trial {trial.number} {trial.state}{value}{': ' if trial.said else ''}{trial.said}", flush=True)

    def _end_all(self) -> None:
        """What trains when the sweep ends keeps a checkpoint where it can, and stays begun."""
        for _, process, _ in self.running.values():
            process.terminate()
        for trial, process, began in self.running.values():
            # Not told again: a second signal ends a trial without a checkpoint.
            _wait(process)
            trial.seconds += time.monotonic() - began
            write_trial(self.folder, trial)
        self.running.clear()


def _end(process: Process) -> None:
    process.terminate()
    _wait(process)


def _wait(process: Process) -> None:
    """Until a process that was told to end has ended, or its time for that is over."""
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def _sigterm_stops() -> Iterator[None]:
    """SIGTERM ends the sweep as Ctrl-C does, so that no trial is left alone; with its own exit code."""

    def stop(number: int, frame: object) -> None:
        raise Stopped(number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
