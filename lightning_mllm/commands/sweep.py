"""`mllm sweep FILE`: check a sweep of W&B and say how it is started; with `--local` run it without a server.

runs/sweeps/NAME/sweep.html    trials, parallel coordinates, what matters; sweep.png and sweep.json beside it
runs/sweeps/NAME/best/         the best trial as an experiment that `mllm run` takes
runs/sweeps/NAME/003/          a trial: its journal, its log and its run
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lightning_mllm.commands.arguments import Arguments
from lightning_mllm.commands.config import ConfigError
from lightning_mllm.commands.lock import locked
from lightning_mllm.commands.sweep_best import write_best
from lightning_mllm.commands.sweep_file import SweepFile, check, read_sweep, sweep_path
from lightning_mllm.commands.sweep_local import LocalSweep, Start
from lightning_mllm.commands.trials import Trial
from lightning_mllm.evaluation.results import write_json
from lightning_mllm.evaluation.sweep_report import Importance, SweepReport, Tried, label, write_sweep

DECIDES = ("program", "command", "method", "metric", "parameters", "early_terminate")
"""What of a file makes another sweep where it changes."""


def run_local(
    sweep: SweepFile,
    folder: Path,
    *,
    count: int | None = None,
    parallel: int = 1,
    seed: int = 0,
    start: Start | None = None,
) -> SweepReport:
    """Runs what is left of a sweep, and writes what it has found; also where it is stopped or a trial fails.

    Args:
        sweep: A checked file.
        folder: Where it is kept.
        count: Trials in all; None is all of a grid.
        parallel: Trials at once.
        seed: Of the search.
        start: Starts the process of a trial; None is a process of this machine.

    Raises:
        ConfigError: The folder holds another sweep, or trials fail one after another.
    """
    asked: dict[str, object] = {key: sweep.content[key] for key in DECIDES if key in sweep.content}
    asked = json.loads(json.dumps({**asked, "seed": seed, "parallel": parallel if sweep.method == "bayes" else 1}))
    with locked(folder):
        _refuse_another(folder, asked)
        local = LocalSweep(sweep, folder, count=count, parallel=parallel, seed=seed, start=start)
        if not (folder / "sweep.json").is_file():
            write_json(folder / "sweep.json", {"asked": asked})
        try:
            local.run()
        finally:
            report = report_of(sweep, local.trials, asked)
            found = write_sweep(folder, report)
            best = write_best_of(sweep, report, local.trials, folder)
    _say(report, found, folder, best)
    return report


def _refuse_another(folder: Path, asked: Mapping[str, object]) -> None:
    file = folder / "sweep.json"
    known = json.loads(file.read_text(encoding="utf-8"))["asked"] if file.is_file() else asked
    if changed := sorted(key for key in {*known, *asked} if known.get(key) != asked.get(key)):
        raise ConfigError(
            f"{folder}: found a sweep with another {', another '.join(changed)}, expected the same; name another --to"
            " or move the folder away"
        )


def report_of(sweep: SweepFile, trials: Sequence[Trial], asked: Mapping[str, object]) -> SweepReport:
    """The trials with flat names of their parameters."""
    tried = [
        Tried(
            number=each.number,
            state=each.state,
            value=each.value,
            seconds=each.seconds,
            values=_flat(sweep, {name: value["value"] for name, value in each.values.items()}),
            said=each.said,
        )
        for each in trials
    ]
    return SweepReport(
        name=sweep.name,
        method=sweep.method,
        metric=sweep.metric,
        maximize=sweep.maximize,
        trials=tried,
        asked=asked,
    )


def _flat(sweep: SweepFile, values: Mapping[str, object]) -> dict[str, object]:
    """W&B's nested parameters by their dotted names; a value that is a mapping stays one."""
    nested = {name for name, each in sweep.content["parameters"].items() if "parameters" in each}
    found: dict[str, object] = {}
    for name, value in values.items():
        inside = value.items() if name in nested and isinstance(value, Mapping) else ()
        found |= {f"{name}.{key}": each for key, each in inside} or {name: value}
    return found


def write_best_of(sweep: SweepFile, report: SweepReport, trials: Sequence[Trial], folder: Path) -> Path | None:
    """The best trial as an experiment; None where none is finished."""
    best = report.best
    if best is None:
        return None
    values = next(each.values for each in trials if each.number == best.number)
    said = f"Trial {best.number} of {sweep.name}, the best of {len(trials)}: {sweep.metric} {best.value:.4g}."
    written, to = folder / ".best.part", folder / "best"
    shutil.rmtree(written, ignore_errors=True)
    write_best(sweep, values, written, said=said)
    # An earlier best may have had other stages.
    shutil.rmtree(to, ignore_errors=True)
    return written.rename(to)


def _say(report: SweepReport, found: Sequence[Importance], folder: Path, best: Path | None) -> None:
    table = Table("trial", *report.parameters, report.metric, "state", "s", title=f"{report.name} ({report.method})")
    for each in report.ranked:
        mark = "[bold]" if report.best is not None and each.number == report.best.number else ""
        value = "" if each.value is None else f"{each.value:.4g}"
        cells = [str(each.number), *(label(each.values.get(name)) for name in report.parameters), value, each.state]
        table.add_row(*(f"{mark}{escape(cell)}" for cell in cells), f"{mark}{each.seconds:.0f}")
    Console().print(table)
    for each in found:
        towards = "" if each.correlation is None else f", correlation {each.correlation:+.2f}"
        print(f"importance of {each.name}: {each.importance:.2f}{towards}")
    if best is not None:
        print(f"the best: mllm run {best}")
    print(folder / "sweep.html")


def main(arguments: Sequence[str]) -> None:
    """Check, and run or say how to run."""
    parser = Arguments(
        "sweep",
        description="Check a sweep file of W&B (schema, every key and value of its parameters, its metric) and print "
        "how it is started; with --local, run it on this machine without a server. The same command goes on where a "
        "stopped one was; trials that failed are tried again.",
    )
    parser.add_argument("file", metavar="FILE", help="a sweep file, or the name of a shipped one such as learning_rate")
    parser.add_argument("--local", action="store_true", help="run it here, without a server")
    parser.add_argument("--count", type=int, metavar="N", help="trials in all (a whole grid)")
    parser.add_argument("--parallel", type=int, default=1, metavar="K", help="trials at once (1)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the search (0)")
    parser.add_argument("--to", type=Path, metavar="DIR", help="where it is kept (runs/sweeps/NAME)")
    given = parser.parse_args(arguments)
    for name in ("count", "parallel"):
        if (value := getattr(given, name)) is not None and value < 1:
            raise ConfigError(f"--{name}: found {value}, expected at least 1")
    sweep = read_sweep(sweep_path(given.file))
    check(sweep, here=given.local)
    if given.local:
        folder = given.to or Path("runs/sweeps", sweep.name)
        run_local(sweep, folder, count=given.count, parallel=given.parallel, seed=given.seed)
        return
    goal = "maximize" if sweep.maximize else "minimize"
    print(f"{sweep.path}: {goal} {sweep.metric}, {sweep.method} search; every key and value is one that mllm takes")
    count = "" if given.count is None else f" --count {given.count}"
    print(f"with a server:  wandb sweep {sweep.path}")
    print(f"                wandb agent{count} SWEEP_ID")
    print(f"without one:    mllm sweep {given.file} --local{count or ('' if sweep.method == 'grid' else ' --count N')}")
