"""`mllm run EXPERIMENT`: the stages of a folder, in the order that `init_from` gives, then tests and the report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lightning.pytorch.utilities.rank_zero import rank_zero_only
from rich.console import Console
from rich.table import Table

from lightning_mllm.commands.arguments import Arguments
from lightning_mllm.commands.command_line import SETTINGS, check_tree
from lightning_mllm.commands.config import Config, ConfigError, nearest, option_tree
from lightning_mllm.commands.experiments import experiment_folder, experiment_name, hardware_file, order_of_stages
from lightning_mllm.commands.finished import NotDone, is_tested, refuse_changed_source
from lightning_mllm.commands.launch import CLI, CheckedCLI, ParsedCLI, compose, run_and_release, say
from lightning_mllm.commands.requeue import requeued
from lightning_mllm.commands.run_folder import check_writable_folders
from lightning_mllm.commands.seeds import parse_seeds, run_seeds, seeded
from lightning_mllm.commands.sweep_agent import agents_run, trial_folder
from lightning_mllm.evaluation.report import write_report

ONE_STAGE = ("stage.name", "stage.init_from", "stage.train", "data.train", "data.val", "data.test", "model", "data")
"""What can only be meant for one stage; the last two as a whole, not their keys."""
NONE_IS_FOR_ALL = ("data.val", "data.test")
"""What every stage can be told to do without."""
GIVEN = {"run_dir": "it follows from --runs", "ckpt_path": "a stopped stage goes on from its own checkpoint"}
"""What `mllm run` decides itself."""


def overrides_of(overrides: Sequence[str], stages: Sequence[str], chosen: Sequence[str]) -> dict[str, list[str]]:
    """The settings of each chosen stage: those that name it, without its name, and those that name none.

    Raises:
        ConfigError: One that only a single stage can mean names none although several are chosen, or `mllm run` decides
            it itself.
    """
    found: dict[str, list[str]] = {stage: [] for stage in chosen}
    for each in overrides:
        name = each.lstrip("-").partition("=")[0].replace(".init_args", "").removesuffix("+")
        stage, _, key = name.partition(".")
        named = stage in stages and stage not in SETTINGS and key
        if named and stage not in chosen:
            raise ConfigError(f"--{name}: found a setting of the stage '{stage}', expected one of {', '.join(chosen)}")
        if (reason := GIVEN.get(key if named else name)) is not None:
            raise ConfigError(f"--{name}: found it with mllm run, where {reason}; mllm fit takes it")
        if named:
            _check_setting(stage, key, each.partition("=")[2])
        without = name in NONE_IS_FOR_ALL and each.partition("=")[2] in ("null", "None")
        single = not without and any(name == one or (name.startswith(f"{one}.") and "." in one) for one in ONE_STAGE)
        if not named and single and len(chosen) > 1:
            raise ConfigError(
                f"--{name}: found no stage that it is for, expected one of "
                f"{', '.join(f'--{stage}.{name}' for stage in chosen)}"
            )
        for one in [stage] if named else chosen:
            found[one].append("--" + each.lstrip("-").removeprefix(f"{stage}.") if named else each)
    return found


def _check_setting(stage: str, key: str, value: str) -> None:
    """Refuse an unknown key of `--STAGE.key=value` under the name that was given."""
    try:
        check_tree(option_tree(key, value), Config())
    except ConfigError as error:
        told = str(error).replace("the nearest is '", f"the nearest is '{stage}.")
        raise ConfigError(f"--{stage}.{told}") from None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The stages of an experiment that are to be run, each parsed and checked."""

    run: Path
    """The folder of the experiment's runs."""
    folder: Path
    """The experiment's files."""
    last: str
    """The last stage of the experiment, chosen or not."""
    settings: dict[str, list[str]]
    """Chosen stage -> the settings of the command line that it takes, in the order of the stages."""
    arguments: dict[str, list[str]]
    """Chosen stage -> all that follows a verb of `mllm fit` and its like."""
    parsed: dict[str, CLI]

    def command(self, verb: str, stage: str) -> list[str]:
        """The arguments of `mllm`."""
        return [verb, *self.arguments[stage]]


def plan(
    folder: Path,
    *,
    hardware: str = "cpu",
    only: str | None = None,
    runs: Path = Path("runs"),
    overrides: Sequence[str] = (),
    seed: int | None = None,
    allow_drift: Sequence[str] = (),
) -> Plan:
    """Resolve every stage of an experiment; the arguments are those of `run_experiment`.

    Raises:
        ConfigError: Something in the files or on the command line is wrong.
    """
    folder = experiment_folder(folder)
    stages = order_of_stages(folder)
    if only is not None and only not in stages:
        raise ConfigError(f"--only: found '{only}', expected one of {', '.join(stages)}{nearest(only, stages)}")
    run, overrides = seeded(trial_folder(runs) or runs / experiment_name(folder), seed, overrides)
    shared = ["--config", str(folder / "net.yaml")] if (folder / "net.yaml").is_file() else []
    machine = ["--config", str(hardware_file(folder, hardware))]
    chosen = [stage for stage in stages if only in (None, stage)]
    settings = overrides_of(overrides, stages, chosen)
    arguments = {}
    for stage in chosen:
        own, located = ["--config", str(folder / f"{stage}.yaml")], [f"--runs={runs}", f"--run_dir={run / stage}"]
        allowed = [f"--allow-drift={name}" for name in allow_drift]
        arguments[stage] = [*shared, *own, *machine, *located, *settings[stage], *allowed]
    parsed = {stage: compose(["fit", *arguments[stage]], ParsedCLI) for stage in chosen}
    return Plan(run=run, folder=folder, last=stages[-1], settings=settings, arguments=arguments, parsed=parsed)


def run_experiment(
    folder: Path,
    *,
    hardware: str = "cpu",
    only: str | None = None,
    runs: Path = Path("runs"),
    overrides: Sequence[str] = (),
    overwrite: bool = False,
    seed: int | None = None,
    allow_drift: Sequence[str] = (),
) -> Path:
    """Train what is not trained yet, test every stage that has test sets, write the report; gives the run's folder.

    Every stage is resolved and checked before the first one trains.

    Args:
        hardware: A file of `_hardware`, or its name.
        only: This stage alone.
        runs: Where runs are kept.
        overrides: Settings as on the command line; `--STAGE.key=value` is one of a single stage.
        overwrite: Train anew what has been trained.
        seed: One of several seeds, each with a folder of its own in the run's; None for the settings' own.
        allow_drift: Names of what may differ from what a stage was begun with (commands/identity.py).

    Raises:
        ConfigError: Something in the files or on the command line is wrong.
    """
    started = time.monotonic()
    named = {"overrides": overrides, "seed": seed, "allow_drift": allow_drift}
    planned = plan(folder, hardware=hardware, only=only, runs=runs, **named)
    with requeued(lambda: all(each.settings.hardware.requeue for each in planned.parsed.values())):
        _run_planned(planned, runs, whole=only is None, overwrite=overwrite, started=started)
    return planned.run


def _run_planned(planned: Plan, runs: Path, *, whole: bool, overwrite: bool, started: float) -> None:
    """The stages that wait, the tests that miss, and the report.

    Args:
        whole: Whether all stages of the experiment are chosen.
        started: By the monotonic clock.
    """
    run, parsed, chosen = planned.run, planned.parsed, list(planned.parsed)
    anew = ["--overwrite"] if overwrite else []
    waiting = [stage for stage in chosen if overwrite or not parsed[stage].is_done()]
    for stage in waiting:
        check_writable_folders(run / stage, "fit")
    for stage in waiting if not overwrite else ():
        parsed[stage].checkpoint()
    for stage in chosen:
        if stage in waiting:
            compose([*planned.command("fit", stage), *anew], CheckedCLI)
            continue
        refuse_changed_source(run / stage)
        if has_tests(parsed[stage]) and not is_tested(run / stage, parsed[stage].test_settings):
            compose(planned.command("test", stage), CheckedCLI)
    for stage in chosen:
        if stage in waiting:
            with agents_run(stage == chosen[-1], runs):
                try:
                    run_and_release([*planned.command("fit", stage), *anew])
                except NotDone:
                    say(f"{run}: no test and no report, for {stage} is not done")
                    raise
            if not (run / stage / "weights" / "stage.json").is_file():
                say(f"{run}: no test and no report, for {stage} is not done")
                return
        else:
            refuse_changed_source(run / stage)
            say(f"{run / stage} is done")
    tested = [stage for stage in chosen if has_tests(parsed[stage])]
    if whole and not tested and not _names_tests(parsed[planned.last]):
        tested = [planned.last]
    for stage in tested:
        if is_tested(run / stage, parsed[stage].test_settings):
            say(f"{run / stage} is tested")
        else:
            with agents_run(stage == chosen[-1], runs):
                run_and_release([*planned.command("test", stage), "--verbose=false"])
    if tested:
        _report(run, time.monotonic() - started)
    else:
        say(f"{run}: no report, for no test sets (data.test) stand in {', '.join(chosen)}")


def has_tests(parsed: CLI) -> bool:
    """Whether the stage names sets to test it on."""
    return bool(parsed.settings["data"]["init_args"].get("test"))


def _names_tests(parsed: CLI) -> bool:
    """Whether the stage's data module takes test sets by name; one of another kind may have some of its own."""
    return "test" in parsed.settings["data"]["init_args"]


@rank_zero_only
def _report(run: Path, seconds: float) -> None:
    report = write_report(run)
    several = len(report.tests) > 1
    table = Table(*(["stage"] if several else []), "score", "value", "95 % interval", "blind", title=str(run))
    for score in (each for tested in report.tests for each in tested.rows):
        interval = f"{score.found['low']:.3f} to {score.found['high']:.3f}"
        blind = f"{score.blind['value']:.3f}" if score.blind else ""
        table.add_row(*([score.stage] if several else []), score.name, f"{score.found['value']:.3f}", interval, blind)
    table.caption = "; ".join(size for tested in report.tests for size in tested.sizes)
    Console().print(table)
    print(f"{run / 'report.html'} ({seconds:.0f} s)")


def parser() -> Arguments:
    """Of the arguments of `mllm run`."""
    found = Arguments(
        "run",
        description="Train the stages of an experiment in order, skip those that are done, test those that have test "
        "sets and write report.html. The same command goes on where a stopped one was.",
        epilog="Further options are settings, as in mllm fit: --stage.lr=1e-3 holds for every stage, "
        "--STAGE.stage.lr=1e-3 for that one alone.",
    )
    found.add_argument("experiment", type=Path, help="a folder such as experiments/quickstart/llava, or its name")
    found.add_argument("--hardware", default="cpu", help="a file of _hardware: cpu, gpu1, gpu8 (cpu)")
    found.add_argument("--only", metavar="STAGE", help="this stage alone")
    found.add_argument("--runs", type=Path, default=Path("runs"), help="where runs are kept (runs)")
    found.add_argument("--overwrite", action="store_true", help="train anew what is there already")
    found.add_argument(
        "--allow-drift", metavar="NAME", action="append", default=[], help="go on with data or a setting that changed"
    )
    found.add_argument("--seeds", metavar="0,1,2", help="a run of each seed, in a folder of its own, then compared")
    return found


def main(arguments: Sequence[str]) -> None:
    """`mllm run experiments/<name> [--hardware H] [--only STAGE] [overrides]`."""
    given, overrides = parser().with_settings(arguments)
    run = partial(
        run_experiment,
        given.experiment,
        hardware=given.hardware,
        only=given.only,
        runs=given.runs,
        overrides=overrides,
        overwrite=given.overwrite,
        allow_drift=given.allow_drift,
    )
    if given.seeds is None:
        run()
        return
    stages = [given.only] if given.only else order_of_stages(given.experiment)
    run_seeds(parse_seeds(given.seeds), stages, overrides, lambda seed: run(seed=seed))
