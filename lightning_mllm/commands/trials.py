"""The journal of a sweep without a server: a folder a trial, whose `trial.json` is written whole or not at all.

runs/sweeps/NAME/003/trial.json     what it tries, how far it is, what it scored
runs/sweeps/NAME/003/log.txt        what its process said
runs/sweeps/NAME/003/STAGE/         its run, as of `mllm run`
"""

from __future__ import annotations

import csv
import fcntl
import json
import math
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from lightning_mllm.commands.sweep_file import Values
from lightning_mllm.evaluation.results import write_json
from lightning_mllm.weights.run_records import read_test

State = Literal["running", "finished", "stopped", "failed"]
RECORD, LOG, LOCK = "trial.json", "log.txt", ".lock"


@dataclass(kw_only=True)
class Trial:
    """One run of a sweep."""

    number: int
    """From 1, in the order in which the search proposed them."""
    values: Values
    """Its parameters."""
    stage: str
    """Which of its stages is scored."""
    state: State = "running"
    """`running` too where the sweep was stopped; `stopped` by early stopping."""
    value: float | None = None
    """Of the metric, the last one; None where it is unknown or not finite."""
    history: list[float] = field(default_factory=list)
    """Its finite values in order."""
    seconds: float = 0.0
    """By the clock, of all its processes."""
    said: str = ""
    """Why it failed."""

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.number:03d}"

    @property
    def is_over(self) -> bool:
        return self.state != "running"


def read_trials(folder: Path) -> list[Trial]:
    """Those that the folder of a sweep holds, by number."""
    files = sorted(folder.glob(f"[0-9]*/{RECORD}"))
    return sorted((Trial(**json.loads(each.read_text(encoding="utf-8"))) for each in files), key=lambda t: t.number)


def write_trial(folder: Path, trial: Trial) -> None:
    """Writes it down beside its run."""
    write_json(folder / trial.name / RECORD, asdict(trial))


def read_metric(folder: Path, name: str) -> list[float]:
    """The values of a metric that a stage left so far, in order, those that are not finite too.

    Args:
        folder: The run folder of the stage.
        name: As in `metrics.csv`; `test/SCORE` is that of `test.json`.
    """
    if name.startswith("test/"):
        file = folder / "test.json"
        scores = read_test(file).get("scores", {})
        found = scores.get(name.removeprefix("test/"))
        return [] if found is None else [float(found["value"])]
    file = folder / "metrics.csv"
    if not file.is_file():
        return []
    text = file.read_text(encoding="utf-8")
    # A row that is being written ends with no line feed.
    rows = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())
    return [float(row[name]) for row in rows if row.get(name)]


def take_metric(folder: Path, trial: Trial, name: str) -> None:
    """Notes value and history of a metric as they are now in its run folder."""
    values = read_metric(folder / trial.name / trial.stage, name)
    trial.history = [value for value in values if math.isfinite(value)]
    trial.value = values[-1] if values and math.isfinite(values[-1]) else None


def last_words(folder: Path, trial: Trial) -> str:
    """The last line of its log."""
    file = folder / trial.name / LOG
    lines = file.read_text(encoding="utf-8", errors="replace").split("\n") if file.is_file() else []
    return next((line.strip().removeprefix("mllm: ") for line in reversed(lines) if line.strip()), "it said nothing")


def held(folder: Path, trial: Trial) -> int:
    """A lock that the process of a trial inherits, and that is free again when the last holder has ended.

    A sweep that was killed may have left a process that still trains: this waits for it, for it is not ours to end.
    """
    path = folder / trial.name / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    file, told = os.open(path, os.O_RDWR | os.O_CREAT, 0o644), False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            if not told:
                print(f"{path.parent} is still trained by a process that a stopped sweep left; waiting for it")
            told = True
            time.sleep(0.5)
