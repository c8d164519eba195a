"""`mllm doctor EXPERIMENT`: whether a run would go well, asked before it begins, on a CPU, in about a minute.

One function a check, which yields lines; a stage whose configuration is wrong has no other checks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lightning_mllm.commands import (
    doctor_batch,
    doctor_environment,
    doctor_files,
    doctor_memory,
    doctor_settings,
    doctor_twin,
)
from lightning_mllm.commands.arguments import Arguments
from lightning_mllm.commands.config import ConfigError
from lightning_mllm.commands.doctor_lines import LEVELS, Line, Subject, offline
from lightning_mllm.commands.experiments import order_of_stages
from lightning_mllm.commands.stage_data import composed_stages
from lightning_mllm.evaluation.report import template
from lightning_mllm.weights.files import write_text

Check = Callable[[Subject], Iterator[Line]]
CHECKS: tuple[Check, ...] = (
    doctor_environment.devices,
    doctor_settings.start,
    doctor_files.parts,
    doctor_files.data,
    doctor_settings.batches,
    doctor_batch.batch,
    doctor_batch.masks,
    doctor_batch.slots,
    doctor_batch.parity,
    doctor_settings.freezing,
    doctor_twin.gradients,
    doctor_twin.round_trip,
    doctor_files.disk,
    doctor_memory.memory,
)
MEMORY_BEGINS = 40
"""Seconds after which no estimate of memory is begun any more: one of a large net takes ten."""
MARKS = {"green": "ok", "yellow": "look", "red": "FAULT"}


def examine(
    experiment: Path,
    *,
    hardware: str = "cpu",
    only: str | None = None,
    runs: Path = Path("runs"),
    overrides: Sequence[str] = (),
    device_memory: int | None = None,
) -> list[Line]:
    """All lines of an experiment, those of the machine first.

    Args:
        experiment: As of mllm run, or a YAML file of one stage.
        hardware: A file of `_hardware`, or its name.
        only: This stage alone.
        runs: Where runs are kept.
        overrides: Settings as on the command line of `mllm run`.
        device_memory: Bytes of the device; None asks this machine.

    Raises:
        ConfigError: There is no such experiment, or no such stage.
    """
    deadline = time.monotonic() + MEMORY_BEGINS
    stages = composed_stages(experiment, hardware=hardware, only=only, overrides=overrides)
    siblings = tuple(order_of_stages(experiment)) if not experiment.is_file() else (experiment.stem,)
    lines = list(doctor_environment.packages())
    with offline():
        for stage in stages:
            own = Subject(stage=stage, siblings=siblings, runs=runs, device_memory=device_memory, deadline=deadline)
            lines += [replace(line, stage=stage.name) for line in _lines(own)]
    return lines


def _lines(subject: Subject) -> Iterator[Line]:
    for first in doctor_settings.configuration(subject):
        yield first
        if first.level == "red":
            return
    for check in CHECKS:
        yield from _guarded(check, subject)


def _guarded(check: Check, subject: Subject) -> Iterator[Line]:
    """The lines of a check; an error that it did not expect is a line, too."""
    try:
        yield from check(subject)
    except Exception as error:
        told = f"{check.__name__}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        remedy = "MLLM_TRACEBACK=1 mllm run shows where; this is a fault that the check did not expect"
        yield Line(check=check.__name__, level="red", found=told, remedy=remedy)


def worst(lines: Sequence[Line]) -> str:
    """The level of the worst line."""
    return max((line.level for line in lines), key=LEVELS.index)


def print_lines(experiment: str, lines: Sequence[Line], console: Console) -> None:
    """A table for each stage, and what to do about what is not green."""
    for stage in dict.fromkeys(line.stage for line in lines):
        table = Table("", "check", "found", title=escape(f"{experiment}/{stage}" if stage else "this machine"))
        table.columns[2].overflow = "fold"
        for line in (each for each in lines if each.stage == stage):
            style = {"green": "green", "yellow": "yellow", "red": "bold red"}[line.level]
            told = escape(line.found) + (f"\n[dim]->[/dim] {escape(line.remedy)}" if line.remedy else "")
            table.add_row(f"[{style}]{MARKS[line.level]}[/{style}]", line.check, told)
        console.print(table)
    console.print(summary(lines), highlight=False)


def summary(lines: Sequence[Line]) -> str:
    """How many lines of each level there are, in a sentence."""
    count = {level: sum(line.level == level for line in lines) for level in LEVELS}
    ends = {"green": "nothing stands in the way", "yellow": "nothing stops the run", "red": "the run would go wrong"}
    return f"{count['green']} green, {count['yellow']} yellow, {count['red']} red: {ends[worst(lines)]}"


def render(experiment: str, hardware: str, lines: Sequence[Line]) -> str:
    """The page; its template is evaluation/templates/doctor.html.jinja."""
    stages = {stage: [line for line in lines if line.stage == stage] for stage in dict.fromkeys(x.stage for x in lines)}
    counts = {level: sum(line.level == level for line in lines) for level in LEVELS}
    return template("doctor.html.jinja").render(
        experiment=experiment,
        hardware=hardware,
        stages=stages,
        counts=counts,
        marks=MARKS,
        summary=summary(lines),
        worst=worst(lines),
    )


def main(arguments: Sequence[str]) -> None:
    """`mllm doctor EXPERIMENT [--hardware H] [--stage S] [--to FILE] [settings]`; exit code 2 where a line is red."""
    parser = Arguments(
        "doctor",
        description="Check an experiment before it is run, on a CPU and in about a minute: settings, files, a batch of"
        " each set, what is learned, prompts, gradients and export of a tiny twin, disk and memory. Nothing is trained"
        " or downloaded. A red line means that the run would stop or learn something else; the exit code is 2 then.",
        epilog="Further options are settings, as in mllm run: --hardware.micro_batch=8, --STAGE.model.chat=plain",
    )
    parser.add_argument("experiment", type=Path, metavar="EXPERIMENT", help="as of mllm run, or the YAML of one stage")
    parser.add_argument("--stage", metavar="STAGE", help="this stage alone")
    parser.add_argument("--hardware", default="cpu", metavar="NAME", help="a file of _hardware: cpu, gpu1, gpu8 (cpu)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where runs are kept (runs)")
    parser.add_argument("--device-memory", type=float, metavar="GB", help="of one GPU (that of this machine)")
    parser.add_argument("--to", type=Path, metavar="FILE", help="a page, doctor.html (none)")
    given, overrides = parser.with_settings(arguments)
    if given.device_memory is not None and given.device_memory <= 0:
        raise ConfigError(f"--device-memory: found {given.device_memory:g}, expected a number above 0")
    size = None if given.device_memory is None else round(given.device_memory * 10**9)
    lines = examine(
        given.experiment,
        hardware=given.hardware,
        only=given.stage,
        runs=given.runs,
        overrides=overrides,
        device_memory=size,
    )
    name = str(given.experiment).removeprefix("experiments/").rstrip("/")
    print_lines(name, lines, Console())
    if given.to is not None:
        given.to.parent.mkdir(parents=True, exist_ok=True)
        write_text(given.to, render(name, given.hardware, lines))
        print(given.to)
    if worst(lines) == "red":
        raise SystemExit(2)
