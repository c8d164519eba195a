"""The command line of `mllm fit|validate|test|predict`: split strictly, completed, checked before anything is built.

--config F ... --key=value ...   files first, from left to right, then options: the command line wins
key=value                        the same as --key=value, as sweep agents pass it
{"key": value, ...}              the same as --key=value ..., as sweep agents pass it too
--key=None                       the same as --key=null, also inside of lists and mappings that Python wrote
--stage.steps=5                  replaces the epochs that a file states, and the reverse; so does a later file
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from lightning import LightningDataModule, Trainer

from lightning_mllm.commands.config import COMMAND_LINE, Config, ConfigError, layers, nearest, option_tree
from lightning_mllm.commands.experiments import below_experiments
from lightning_mllm.commands.hardware import Hardware
from lightning_mllm.commands.loggers import named
from lightning_mllm.commands.merge import merged
from lightning_mllm.commands.secrets import note
from lightning_mllm.commands.signatures import parameters_of
from lightning_mllm.commands.sweep_agent import as_yaml, options_of, trial_folder
from lightning_mllm.commands.trust import add_folders
from lightning_mllm.training.module import MultimodalModule
from lightning_mllm.training.skipped_steps import SkipLimits
from lightning_mllm.training.stage import StageSettings

SETTINGS: dict[str, object] = {
    "model": MultimodalModule,
    "data": LightningDataModule,
    "stage": StageSettings,
    "hardware": Hardware,
    "trainer": Trainer,
    "run_dir": str,
    "runs": str,
    "checkpoint_every": int | str,
    "skipped_steps": SkipLimits,
    "checkpoint_keep": int,
    "seed_everything": bool | int,
    "ckpt_path": str | None,
    "verbose": bool,
    "weights_only": bool | None,
    "return_predictions": bool | None,
}
"""What a stage file may say at its top, beside what LightningCLI itself adds."""
EXPECTED = ("model", "data", "stage", "hardware", "trainer", "run_dir", "seed_everything", "ckpt_path")
GROUPS = ("model", "data", "stage", "hardware", "trainer")
"""Of these, those that are settings of a class."""
FLAGS = {"print_config": "", "overwrite": "true"}
"""Options that need no value, and what they mean without one."""
DRIFT = ("allow_drift", "allow-drift")
"""The option that names differences with which a stage goes on all the same; it may stand several times."""

Options = list[tuple[str, str]]
"""Name and value of each option, in order."""


def split_options(arguments: Sequence[str]) -> tuple[list[Path], Options]:
    """The `--config` files and the other options of a command line without its verb, each in order.

    Raises:
        ConfigError: Something stands there that is neither, or an option has no value.
    """
    configs: list[Path] = []
    options: Options = []
    rest = list(arguments)
    while rest:
        each = rest.pop(0)
        if (several := options_of(each)) is not None:
            rest = [*several, *rest]
            continue
        name, equals, value = each.lstrip("-").partition("=")
        if not each.startswith("-") and not (equals and name.split(".")[0] in (*SETTINGS, *FLAGS, "config")):
            raise ConfigError(f"command line: found '{each}', expected options such as --config F or --stage.lr=1e-3")
        if not equals and name in FLAGS:
            value = FLAGS[name]
        elif not equals:
            if not rest or rest[0].startswith("--"):
                raise ConfigError(f"command line: {name}: found no value, expected --{name}=VALUE")
            value = rest.pop(0)
        if name in ("config", "c"):
            if not value:
                raise ConfigError("command line: --config: found no value, expected a YAML file")
            configs.append(Path(value))
        else:
            note({name.rpartition(".")[2]: value})
            options.append((name, as_yaml(value)))
    return configs, options


def default_run_dir(configs: Sequence[Path], runs: str = "runs") -> Path:
    """`RUNS/<path under experiments>` of the last file that is a stage: not a shared part, not `net.yaml`."""
    stages = [each for each in configs if each.stem != "net" and not each.parent.name.startswith("_")]
    if not stages:
        return Path(runs, "unnamed")
    return Path(runs, *below_experiments(stages[-1].resolve().with_suffix("")))


def read_command_line(arguments: Sequence[str]) -> tuple[list[str], dict[str, object], Config]:
    """Read every configuration file of a command line (without its verb) strictly and check all keys.

    Returns:
        The command line that says all of it to jsonargparse, what it says as one tree, and where each key was set.

    Raises:
        ConfigError: The first thing that is wrong, in one sentence.
    """
    configs, options = split_options(arguments)
    config = Config()
    lengths: list[set[str]] = []
    tree = read_files(configs, config, lengths)
    told = [f"--config={yaml.safe_dump(tree, sort_keys=False)}"] if tree else []
    lengths.append(set())
    for position, (name, text) in enumerate(options):
        if name in FLAGS:
            config.flags[name] = text
            continue
        if name in DRIFT:
            config.flags[DRIFT[0]] = ",".join(filter(None, [config.flags.get(DRIFT[0]), text]))
            continue
        if name.removesuffix("+").removesuffix(".class_path") == "trainer.logger":
            text = _logger_option(name, text)
            options[position] = name.removesuffix(".class_path"), text
        key = tuple(part.removesuffix("+") for part in name.split(".") if part != "init_args")
        config.locations[key] = config.locations[*key, "class_path"] = COMMAND_LINE
        part = option_tree(".".join(key), text)
        check_tree(part, config, tree, len(key) - 1)
        lengths[-1] |= _lengths(part)
        composed = isinstance(value_at(part, key), Mapping | str)  # a text may name a file of settings
        if composed and isinstance(value := value_at(tree, key), Mapping):
            # Laid over what files say, and complete: `--stage={lr: 0.1}` changes one setting of the stage.
            options[position] = name, yaml.safe_dump(value, default_flow_style=True, width=math.inf)
    _check_classes(config, configs)
    for key, example in {"model": "a net.yaml", "data": "a stage's file", "stage": "a stage's file"}.items():
        if key not in tree:
            raise ConfigError(
                f"command line: found no {key}, expected {example} of an experiment, such as mllm fit --config"
                " experiments/quickstart/llava/net.yaml --config experiments/quickstart/llava/align.yaml; mllm run"
                " EXPERIMENT trains all of its stages"
            )
    for dropped in replaced_length(lengths):
        options = [*options, (f"stage.{dropped}", "null")]
    if not any(name == "run_dir" for name, _ in options):
        file = Path(config.locations.get(("run_dir",), "").rpartition(":")[0])
        runs = dict(options).get("runs", "runs")
        if (trial := trial_folder(runs)) is not None:
            options = [*options, ("run_dir", str(trial / default_run_dir(configs).name))]
        elif file.name == "config.yaml":
            # The record of a run says where the run was before it was moved.
            options = [*options, ("run_dir", str(file.parent))]
        elif ("run_dir",) not in config.locations:
            options = [*options, ("run_dir", str(default_run_dir(configs, runs)))]
    told += [f"--{name}={value}" for name, value in options if name not in (*FLAGS, *DRIFT)]
    told += ["--print_config" + (f"={value}" if value else "") for name, value in options if name == "print_config"]
    return told, tree, config


def read_files(
    configs: Sequence[Path], config: Config | None = None, lengths: list[set[str]] | None = None
) -> dict[str, object]:
    """What several files, and those that they extend, say together: later ones are laid over earlier ones.

    Args:
        configs: The files, in order.
        config: Notes where keys stand.
        lengths: Gains the lengths of the stage that each file states.

    Raises:
        ConfigError: A file cannot be read, or a key is unknown.
    """
    config, tree = config or Config(), {}
    for path, part in (layer for file in configs for layer in layers(file, config)):
        assert isinstance(part, dict)
        add_to_path([path])
        trainer = part.get("trainer")
        if isinstance(trainer, dict):
            for key in {"logger", "logger+"} & set(trainer):
                trainer[key] = named(trainer[key], config.head(("trainer", "logger")))
        check_tree(part, config, tree)
        if lengths is not None:
            lengths.append(_lengths(part))
    return tree


def _logger_option(name: str, text: str) -> str:
    """What `--trainer.logger` says, with the whole name of its class."""
    value = named(option_tree("value", text)["value"], f"{COMMAND_LINE}: {name}")
    return yaml.safe_dump(value, default_flow_style=True, width=1 << 20).removesuffix("...\n").strip()


def value_at(tree: object, key: Sequence[str]) -> object:
    """What stands at a key of a configuration, None where nothing does; keys leave out `init_args`."""
    for each in key:
        inner = tree.get("init_args") if isinstance(tree, Mapping) and "init_args" in tree else tree
        tree = inner.get(each) if isinstance(inner, Mapping) else None
    return tree


def _check_classes(config: Config, configs: Sequence[Path]) -> None:
    """Refuse settings of a net or of data whose class nothing names.

    Raises:
        ConfigError: Names the first of them, and the file that perhaps was left out.
    """
    for key in ("model", "data"):
        inside = [path for path in config.locations if path[0] == key and len(path) > 1]
        if not inside or (key,) in config.classes:
            continue
        nets = [each.with_name("net.yaml") for each in configs if each.with_name("net.yaml").is_file()]
        hint = f"; perhaps --config {nets[0]} was meant to come first" if key == "model" and nets else ""
        raise ConfigError(
            f"{config.location(inside[0])}: {'.'.join(inside[0])}: found a setting of a class that nothing names,"
            f" expected {key}.class_path{hint}"
        )


def _lengths(part: Mapping[str, object]) -> set[str]:
    """Which of the two lengths of a stage one file, or the command line, states."""
    return {key for key in ("steps", "epochs") if value_at(part, ("stage", key)) is not None}


def replaced_length(lengths: Sequence[set[str]]) -> set[str]:
    """What the last one that states a length replaces of the others: epochs by steps, or the reverse."""
    stated = [each for each in lengths if each]
    if not stated or len(stated[-1]) > 1:
        return set()
    return set().union(*stated[:-1]) - stated[-1]


def add_to_path(configs: Sequence[Path]) -> None:
    """Make modules importable that lie beside a file or beside its folder `experiments`, as far as they are trusted;
    `main` of `mllm` adds the working directory.

    They come last, so that none of them stands in for an installed package.
    """
    folders: list[Path] = []
    for each in configs:
        folder = each.resolve().parent
        folders += [folder, *(above.parent for above in (folder, *folder.parents) if above.name == "experiments")]
    add_folders(dict.fromkeys(folders))


def _nearest_setting(key: str) -> str:
    """A clause that names the top key closest to `key`, or the group that has a key of this name."""
    for name, cls in (("stage", StageSettings), ("hardware", Hardware), ("trainer", Trainer)):
        if key in (parameters_of(cls) or {}):
            return f"; the nearest is '{name}.{key}'"
    return nearest(key, EXPECTED)


def check_tree(
    part: Mapping[str, object], config: Config, tree: dict[str, object] | None = None, dotted: int = 0
) -> None:
    """Refuse keys that no setting has; lay what a file or an option says over `tree`.

    Args:
        part: What it says.
        config: Where keys stand.
        tree: What was said before.
        dotted: How many keys an option names below its first.

    Raises:
        ConfigError: Names where the first one stands.
    """
    tree = {} if tree is None else tree
    config.classes["trainer",] = Trainer
    note(part)
    for key, value in part.items():
        if key not in SETTINGS:
            raise ConfigError(
                f"{config.head((str(key),))}: found an unknown key, expected one of {', '.join(EXPECTED)}"
                f"{_nearest_setting(str(key))}"
            )
        if value is None and key in GROUPS:
            raise ConfigError(f"{config.head((str(key),))}: found nothing, expected a mapping")
        tree[key] = merged(tree.get(key), value, SETTINGS[key], config, (key,), dotted)
