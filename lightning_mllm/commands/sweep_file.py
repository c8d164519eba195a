"""A sweep file: read as W&B reads it, and checked against its schema and our own settings before anything trains.

    program: mllm
    command: ["${env}", "${program}", run, quickstart/llava, --only=align, "${args}"]
    method: grid                                         # or random, bayes
    metric: {name: val/loss, goal: minimize}             # train/loss, or a score of data.val or data.test
    parameters: {stage.lr: {values: [1.0e-3, 1.0e-2]}}   # settings, named as on the command line

`wandb sweep FILE` and `wandb agent` run it with a server, `mllm sweep FILE --local` without.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from lightning_mllm.commands.command_line import default_run_dir, split_options
from lightning_mllm.commands.config import Config, ConfigError, nearest, read_yaml
from lightning_mllm.commands.experiments import SWEEPS, order_of_stages, shipped, sweep_names
from lightning_mllm.commands.launch import CLI, ParsedCLI, compose
from lightning_mllm.commands.run import parser, plan
from lightning_mllm.evaluation.tasks import TASKS
from lightning_mllm.weights.lineage import InitSource

PROGRAMS = ("mllm", "lightning_mllm.cli")
EXAMPLE = '["${env}", "${program}", run, quickstart/llava, --only=align, "${args}"]'
MACROS = ("env", "interpreter", "program", "args", "args_no_hyphens", "args_json")
ENDS = 0.01, 0.99
"""The quantiles of a distribution that are tried in a check: all of its values have no end."""

Values = dict[str, dict[str, Any]]
"""The parameters of one run, as W&B tells them: name -> {"value": ...}."""


def sweeps() -> ModuleType:
    """W&B's search.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pydantic, about a renamed key
            import sklearn  # noqa: F401
            import sweeps.config.schema
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"sweep: found no package '{error.name}', expected those of pip install lightning-mllm[sweep]"
        ) from None
    return sweeps


def sweep_path(name: str) -> Path:
    """The file that `name` is, or the shipped sweep of this name.

    Raises:
        ConfigError: There is none; names the nearest.
    """
    bare = Path(name).stem
    for path in (Path(name), Path("experiments", SWEEPS, f"{bare}.yaml"), shipped() / SWEEPS / f"{bare}.yaml"):
        if path.is_file():
            return path
    known = [Path(each).name for each in sweep_names(shipped())]
    raise ConfigError(
        f"sweep: found no file {name}, expected a sweep of W&B or one of {', '.join(known)}{nearest(bare, known)}"
    )


@dataclass(frozen=True, kw_only=True)
class SweepFile:
    """What a sweep file says."""

    path: Path
    content: dict[str, Any]
    """As W&B reads it."""
    config: Config
    """Where its keys stand."""

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def method(self) -> str:
        return self.content["method"]

    @property
    def metric(self) -> str:
        return self.content["metric"]["name"]

    @property
    def maximize(self) -> bool:
        return self.content["metric"].get("goal") == "maximize"

    @property
    def stops_early(self) -> bool:
        return "early_terminate" in self.content

    def wrong(self, key: str, sentence: str) -> ConfigError:
        """Of a dotted key."""
        head = self.config.head(tuple(key.split(".")))
        return ConfigError(f"{head if head.startswith(str(self.path)) else f'{self.path}: {key}'}: {sentence}")

    def command(self, values: Values) -> list[str]:
        """The command line that `wandb agent` builds for one run."""
        from wandb.sdk.launch.sweeps.utils import DEFAULT_SWEEP_COMMAND, create_sweep_command, create_sweep_command_args

        known = create_sweep_command_args({"args": values})
        known |= {"env": ["/usr/bin/env"], "interpreter": ["python"], "program": [self.content.get("program", "")]}
        found: list[str] = []
        for each in map(str, create_sweep_command([*self.content.get("command", DEFAULT_SWEEP_COMMAND)])):
            is_macro = each.startswith("${") and each.endswith("}")
            found += known.get(each[2:-1]) or [] if is_macro else [each]
        return found

    def arguments(self, values: Values) -> list[str]:
        """Those of `mllm` in `command`, the verb first.

        Raises:
            ConfigError: It calls something else.
        """
        words = self.command(values)
        position = next((i for i, each in enumerate(words) if Path(each).name in PROGRAMS), len(words))
        if words[position + 1 : position + 2] not in (["run"], ["fit"]):
            raise self.wrong("command", f"found '{' '.join(words[:4])}', expected mllm run or mllm fit as in {EXAMPLE}")
        return words[position + 1 :]

    def variants(self) -> Iterator[tuple[str, Values]]:
        """One run, and then for each other value of a parameter that run with this value in it, with its name.

        Of a distribution two values stand for all.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from sweeps.params import HyperParameterSet
        space = HyperParameterSet.from_config(self.content["parameters"])
        several: list[list[Any]] = []
        for each in space:
            listed = each.config.get("values", [each.config["value"]] if "value" in each.config else None)
            several.append(listed if listed is not None else [each.ppf(end) for end in ENDS])
            each.value = several[-1][0]
        yield "", plain(space.to_config())
        for each, values in zip(space, several, strict=True):
            for each.value in values[1:]:
                yield each.name.split(space.NESTING_DELIMITER)[0], plain(space.to_config())
            each.value = values[0]


def plain(values: Values) -> Values:
    """The same without numpy's numbers, which Python writes as no YAML."""
    return json.loads(json.dumps(values, default=lambda number: number.item()))


def read_sweep(path: Path) -> SweepFile:
    """A sweep that W&B accepts, that calls `mllm run` or `mllm fit` and says what is scored.

    Raises:
        ConfigError: One sentence with file, line, key, what was found and what was expected.
    """
    config = Config()
    read_yaml(path, config)
    # W&B's own reading: 1e-3, without a dot, is a text.
    sweep = SweepFile(path=path, content=yaml.safe_load(path.read_text(encoding="utf-8")), config=config)
    content, schema = sweep.content, sweeps().config.schema
    known = schema.sweep_config_jsonschema["properties"]
    for key in content:
        if key not in known:
            raise sweep.wrong(
                str(key), f"found an unknown key, expected one of {', '.join(known)}{nearest(key, known)}"
            )
    for error in schema.validator.iter_errors(content):
        key = ".".join(map(str, error.path))
        if key.startswith("parameters."):
            raise sweep.wrong(key, f"found {_short(error.instance)}, expected {_parameter(error.instance)}")
        raise sweep.wrong(key or str(path), _short(error.message))
    for violation in sweeps().schema_violations_from_proposed_config(content):
        raise sweep.wrong("parameters", _short(violation))
    if content["method"] == "custom":
        raise sweep.wrong("method", "found custom, expected grid, random or bayes")
    if "metric" not in content:
        raise ConfigError(f"{path}: found no metric, expected one such as {{name: val/loss, goal: minimize}}")
    for each in map(str, content.get("command", ())):
        if each.startswith("${") and each.endswith("}") and each[2:-1] not in MACROS and ":" not in each:
            expected = ", ".join(f"${{{name}}}" for name in MACROS)
            raise sweep.wrong("command", f"found {each}, expected one of {expected}")
    return sweep


def _parameter(value: object) -> str:
    if isinstance(value, Mapping) and any(isinstance(value.get(end), str) for end in ("min", "max")):
        return "numbers, which YAML writes with a dot and a sign: 1.0e-3, 1.0e+3"
    return "value, values, or a distribution with its numbers, as W&B takes them"


def _short(found: object) -> str:
    text = " ".join(str(found).split())
    return text if len(text) <= 200 else f"{text[:200]}..."


def stage_of(sweep: SweepFile, values: Values) -> str:
    """The stage of a run that is scored: the last one that it trains."""
    verb, *arguments = sweep.arguments(values)
    if verb == "fit":
        return default_run_dir(split_options(arguments)[0]).name
    given, _ = parser().with_settings(arguments)
    return given.only or order_of_stages(given.experiment)[-1]


def resolved(sweep: SweepFile, values: Values) -> CLI:
    """The stage of a run that is scored, parsed and checked with all other stages of the run.

    Raises:
        ConfigError: A setting is unknown or has a wrong value, or the run would be kept where others are.
    """
    verb, *arguments = sweep.arguments(values)
    if verb == "run":
        given, overrides = parser().with_settings(arguments)
        if given.seeds is not None:
            raise sweep.wrong("command", "found --seeds, expected a parameter seed_everything: a trial is one run")
        planned = plan(given.experiment, hardware=given.hardware, only=given.only, runs=given.runs, overrides=overrides)
        return list(planned.parsed.values())[-1]
    _, options = split_options(arguments)
    if "run_dir" in dict(options):
        raise ConfigError("run_dir: found it in a sweep, expected none, for each run has a folder of its own")
    return compose([verb, *arguments], ParsedCLI)


def check(sweep: SweepFile, *, here: bool = False) -> None:
    """Resolves every value of every parameter, and looks for the metric in what the stage is scored by.

    Args:
        here: Whether the trials run on this machine: the runs that they start from are looked for.

    Raises:
        ConfigError: A key is unknown, a value is wrong, nothing gives the metric, or a run is absent.
    """
    for name, values in sweep.variants():
        try:
            parsed = resolved(sweep, values)
            for source in parsed.settings.stage.init_from if here else ():
                if "/" in source:  # other names are stages of the trial itself
                    InitSource.find(source, Path(parsed.settings.runs))
        except ValueError as error:
            raise _of_a_parameter(sweep, name, values, str(error)) from error
        # `mllm fit` trains and tests nothing.
        _check_metric(sweep, metrics_of(parsed, ("val", "test") if sweep.arguments(values)[0] == "run" else ("val",)))


def _of_a_parameter(sweep: SweepFile, name: str, values: Values, told: str) -> ConfigError:
    """The sentence of a run's command line, told of the parameter that it names."""
    sentence = told.removeprefix("command line: ").removeprefix("--")
    named = [each for each in values if sentence.startswith(each.replace(".init_args", "").removesuffix("+"))]
    key = max(named, key=len, default=name)
    where = sweep.config.locations.get(("parameters", *key.split(".")), "") or sweep.config.locations.get(
        ("parameters", key), str(sweep.path)
    )
    return ConfigError(f"{where}: {sentence}")


def metrics_of(parsed: CLI, splits: Sequence[str]) -> list[str]:
    """What a stage is scored by on these splits, as it is called in `metrics.csv` and in W&B."""
    data = parsed.resolved["data"]
    arguments = data.get("init_args") if isinstance(data, Mapping) else None
    found = ["train/loss"]
    for split in splits:
        sets = arguments.get(split) if isinstance(arguments, Mapping) else None
        for each in sets.values() if isinstance(sets, Mapping) else ():
            part = f"_{each['part']}" if each.get("part") else ""
            found += [f"{split}/{name}{part}" for name in (TASKS[each["task"]].names if each["task"] in TASKS else ())]
    return found


def _check_metric(sweep: SweepFile, known: Sequence[str]) -> None:
    name = sweep.metric
    if name not in known:
        raise sweep.wrong(
            "metric.name",
            f"found '{name}', expected what the stage is scored by: {', '.join(known)}{nearest(name, known)}",
        )
    if sweep.stops_early and name.startswith("test/"):
        curves = [each for each in known if not each.startswith("test/")]
        raise sweep.wrong(
            "early_terminate", f"found the metric '{name}', which has no curve, expected one of {', '.join(curves)}"
        )
