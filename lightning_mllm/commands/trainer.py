"""`mllm fit|validate|test|predict`: LightningCLI over any architecture and any data module that YAML names."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonargparse
import yaml
from lightning import LightningDataModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lightning_mllm.commands.config import (
    COMMAND_LINE,
    Config,
    ConfigError,
    check_keys,
    import_class,
    nearest,
    option_tree,
    read_yaml,
)
from lightning_mllm.commands.explain import explain
from lightning_mllm.training.callbacks.averaging import Averaging
from lightning_mllm.training.callbacks.checkpoint import StageCheckpoint
from lightning_mllm.training.callbacks.metrics_csv import MetricsCsv
from lightning_mllm.training.callbacks.progress import StageProgress
from lightning_mllm.training.callbacks.record import StageRecord
from lightning_mllm.training.callbacks.rng import RandomStates
from lightning_mllm.training.module import MultimodalModule
from lightning_mllm.training.stage import StageSettings

DEFAULTS = Path(str(files("lightning_mllm") / "defaults" / "fit.yaml"))


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What a machine can hold; it changes speed and memory, never the result.

    Raises:
        ValueError: A number is out of range.
    """

    micro_batch: int = 8
    """Samples a rank takes at once, unless the stage itself says; accumulation to its global batch is derived."""
    text_micro_batch: int = 1
    """Rows of plain text a rank takes at once, where a stage has any beside its samples."""
    workers: int = 0
    """Data loading processes per rank."""
    eval_batch: int = 64
    """Samples a rank answers at once."""

    def __post_init__(self) -> None:
        for name, least in (("micro_batch", 1), ("text_micro_batch", 1), ("workers", 0), ("eval_batch", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"hardware.{name}: found {getattr(self, name)}, expected at least {least}")


def accumulation(global_batch: int, micro_batch: int, world_size: int) -> int:
    """Micro-batches per optimizer step of one rank; `micro_batch` is the stage's or the hardware's (`at_once`).

    Raises:
        ValueError: The global batch is no multiple of what the ranks take at once.
    """
    together = micro_batch * world_size
    if global_batch % together:
        raise ConfigError(
            f"stage.global_batch: found {global_batch}, expected a multiple of {together} = micro_batch "
            f"{micro_batch} x {world_size} devices"
        )
    return global_batch // together


def at_once(stage: int | None, hardware: int) -> int:
    """Samples a rank takes at once: what the stage says, else what the hardware holds."""
    return hardware if stage is None else stage


def averages(callbacks: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that decide which weights a stage hands over, without where they are held meanwhile."""
    chosen = [
        each for each in callbacks if issubclass(import_class(each["class_path"], "trainer.callbacks"), Averaging)
    ]
    return [{**each, "init_args": {k: v for k, v in each["init_args"].items() if k != "device"}} for each in chosen]


def passes(epochs: float | None) -> float:
    """Over the data, where the stage gives no steps."""
    return 1.0 if epochs is None else epochs


class CLI(LightningCLI):
    """LightningCLI with the stage, the hardware and the run folder as groups of their own.

    Precedence: package defaults < `--config` files from left to right < command line.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self.verb = arguments[0]
        super().__init__(
            MultimodalModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            args=list(arguments),
            parser_kwargs={"prog": "mllm", "exit_on_error": False},
        )

    def subcommands(self) -> dict[str, set[str]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        # Only the verb that was called: each of the four parsers takes a quarter of a second to make.
        return {self.verb: LightningCLI.subcommands()[self.verb]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--stage", type=StageSettings, help="What the paper's table says of this stage.")
        parser.add_argument("--hardware", type=Hardware, default=Hardware(), help="What this machine can hold.")
        parser.add_argument("--runs", type=str, default="runs", help="Where runs are kept.")
        parser.add_argument("--run_dir", type=str, help="Where this run is kept. (RUNS/<its YAML under experiments>)")
        parser.add_argument("--checkpoint_every", type=int, default=200, help="Optimizer steps between checkpoints.")
        parser.link_arguments("stage", "model.init_args.stage")
        parser.link_arguments("stage.global_batch", "data.init_args.global_batch")
        parser.link_arguments("stage.epochs", "data.init_args.epochs", compute_fn=passes)
        parser.link_arguments("stage.steps", "data.init_args.steps")
        parser.link_arguments(
            ("stage.micro_batch", "hardware.micro_batch"), "data.init_args.micro_batch", compute_fn=at_once
        )
        for name in ("text_micro_batch", "workers", "eval_batch"):
            parser.link_arguments(f"hardware.{name}", f"data.init_args.{name}")
        parser.link_arguments("seed_everything", "data.init_args.seed")
        parser.link_arguments("run_dir", "trainer.default_root_dir")
        parser.link_arguments("model.processor", "data.init_args.processor", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        # Lightning would merge hyper-parameters found in the checkpoint over the YAML; config.yaml is the record.
        pass

    @property
    def settings(self) -> jsonargparse.Namespace:
        """The resolved configuration of the chosen verb."""
        return self.config[self.config.subcommand]

    @property
    def run_dir(self) -> Path:
        return Path(self.settings.run_dir)

    def recipe(self) -> dict[str, Any]:
        """What decides the result: everything but hardware and places."""
        dumped = yaml.safe_load(self._parser(self.config.subcommand).dump(self.settings, skip_unset=False))
        chosen = {name: dumped[name] for name in ("model", "data", "stage", "seed_everything")}
        limits = {name: dumped["trainer"].get(name) for name in ("max_steps", "max_epochs", "limit_train_batches")}
        if callbacks := averages(dumped["trainer"].get("callbacks") or []):
            limits["callbacks"] = callbacks
        return {**chosen, "trainer": limits}

    def before_instantiate_classes(self) -> None:
        # Taken before names of sibling stages become paths: a copied experiment is the same recipe.
        self.resolved = self._parser(self.subcommand).dump(self.settings, skip_unset=False)
        self.known_recipe = self.recipe()
        sources = self.settings["stage"]["init_from"]
        if self.subcommand != "fit" and not self.settings.get("ckpt_path"):
            sources = self._own_weights(sources)
        sources = {self._sibling(name): weight for name, weight in sources.items()}
        self.settings["stage"]["init_from"] = sources
        self.settings["model"]["init_args"]["stage"]["init_from"] = sources

    def _own_weights(self, sources: dict[str, float]) -> dict[str, float]:
        """Validate and test what this run has trained; before it has, what the stage would start from."""
        if (self.run_dir / "weights" / "stage.json").is_file():
            return {str(self.run_dir.resolve()): 1.0}
        if not sources:
            raise ConfigError(
                f"run_dir: found no weights in {self.run_dir}, expected those of a finished run; train it with mllm fit"
            )
        return sources

    def _sibling(self, name: str) -> str:
        """A name without a slash is a stage of the same experiment."""
        if "/" in name or os.sep in name:
            return name
        experiment = self.run_dir.resolve().parent
        runs = Path(self.settings.runs).resolve()
        return f"{experiment.relative_to(runs) if experiment.is_relative_to(runs) else experiment}/{name}"

    def instantiate_classes(self) -> None:
        super().instantiate_classes()
        self.model.runs = self.settings.runs

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        given = self._get(self.config_init, "trainer")
        callbacks = [*(given["callbacks"] or []), RandomStates(), StageCheckpoint(self.settings.checkpoint_every)]
        if self.subcommand == "fit":
            callbacks.append(StageRecord(self.known_recipe))
        if given["enable_progress_bar"]:
            callbacks.append(StageProgress())
        loggers: list[Any] = [MetricsCsv(str(self.run_dir / "metrics.csv"))] if self.subcommand == "fit" else []
        for each in given["logger"] if isinstance(given["logger"], list) else [given["logger"]]:
            loggers += [each] if isinstance(each, Logger) else []
        try:
            return super().instantiate_trainer(callbacks=callbacks, logger=loggers, **kwargs)
        except MisconfigurationException as error:
            raise ConfigError(f"trainer: {' '.join(str(error).split())}") from None

    def before_fit(self) -> None:
        stage, hardware, world = self.settings["stage"], self.settings["hardware"], self.trainer.world_size
        # Only a data module knows what else a step takes beside the global batch.
        own: Any = getattr(self.datamodule, "accumulation", None)
        self.trainer.accumulate_grad_batches = (
            accumulation(stage["global_batch"], at_once(stage["micro_batch"], hardware["micro_batch"]), world)
            if own is None
            else own(world)
        )
        self.write_config()

    @rank_zero_only
    def write_config(self) -> None:
        """`config.yaml` in the run folder: every value, defaults included; `mllm fit --config` takes it again."""
        self.run_dir.mkdir(parents=True, exist_ok=True)
        (self.run_dir / "config.yaml").write_text(self.resolved, encoding="utf-8")


class ParsedCLI(CLI):
    """The same configuration, parsed and checked, with nothing built and nothing run."""

    def _set_seed(self) -> None:
        pass

    def before_instantiate_classes(self) -> None:
        pass

    def instantiate_classes(self) -> None:
        pass

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def split_options(arguments: Sequence[str]) -> tuple[list[Path], list[tuple[str, str]]]:
    """The `--config` files and the other `--key=value` pairs of a command line, in order."""
    configs, options = [], []
    rest = iter(arguments)
    for each in rest:
        if not each.startswith("-"):
            continue
        name, equals, value = each.lstrip("-").partition("=")
        if not equals:
            value = next(rest, "")
        if name in ("config", "c"):
            configs.append(Path(value))
        else:
            options.append((name, value))
    return configs, options


def default_run_dir(configs: Sequence[Path], runs: str = "runs") -> Path:
    """`RUNS/<path under experiments>` of the last file that is a stage: not a shared part, not `net.yaml`."""
    stages = [each for each in configs if each.stem != "net" and not each.parent.name.startswith("_")]
    if not stages:
        return Path(runs, "unnamed")
    if stages[-1].name == "config.yaml":
        return stages[-1].parent
    parts = stages[-1].resolve().with_suffix("").parts
    under = parts[parts.index("experiments") + 1 :] if "experiments" in parts else parts[-2:]
    return Path(runs, *under)


def known_places(arguments: Sequence[str]) -> Config:
    """Read every configuration file of a command line strictly and check all keys.

    Raises:
        ConfigError: The first thing that is wrong, in one sentence.
    """
    configs, options = split_options(arguments)
    config = Config()
    # What a stage file may say at its top, beside what LightningCLI itself adds.
    hints: dict[str, Any] = {
        "model": MultimodalModule,
        "data": LightningDataModule,
        "stage": StageSettings,
        "hardware": Hardware,
        "trainer": Any,
        **dict.fromkeys(("run_dir", "runs", "checkpoint_every", "seed_everything", "ckpt_path"), Any),
        **dict.fromkeys(("verbose", "weights_only", "return_predictions", "print_config", "help"), Any),
    }
    config.classes["trainer",] = Trainer
    for path in configs:
        tree = read_yaml(path, config)
        if not isinstance(tree, dict):
            raise ConfigError(f"{path}: found {type(tree).__name__}, expected a mapping with model, data, stage, ...")
        _check_tree(tree, hints, config)
    for name, text in options:
        key = tuple(part.removesuffix("+") for part in name.split(".") if part != "init_args")
        config.places[key] = config.places[*key, "class_path"] = COMMAND_LINE
        _check_tree(option_tree(".".join(key), text), hints, config)
    return config


def _check_tree(tree: dict[str, Any], hints: dict[str, Any], config: Config) -> None:
    for key, value in tree.items():
        if key not in hints:
            expected = ("model", "data", "stage", "hardware", "trainer", "run_dir", "seed_everything")
            raise ConfigError(
                f"{config.place((str(key),))}: {key}: found an unknown key, expected one of {', '.join(expected)}"
                f"{nearest(str(key), expected)}"
            )
        check_keys(value, hints[key], config, (key,))


def compose(arguments: Sequence[str], kind: type[CLI] = CLI) -> CLI:
    """Check a whole command line, then build and run it (or, with `ParsedCLI`, only resolve it).

    Raises:
        ConfigError: The configuration is wrong; nothing has been built then.
    """
    config = known_places(arguments[1:])
    configs, options = split_options(arguments)
    if not any(name == "run_dir" for name, _ in options) and not _states_a_run_dir(config):
        runs = dict(options).get("runs", "runs")
        arguments = [*arguments, f"--run_dir={default_run_dir(configs, runs)}"]
    _quieten()
    try:
        return kind([arguments[0], f"--config={DEFAULTS}", *arguments[1:]])
    except jsonargparse.ArgumentError as error:
        raise ConfigError(explain(str(error), config)) from error
    except (ValueError, KeyError) as error:
        if _raised_in_settings(error) or (isinstance(error, ValueError) and _names_a_setting(str(error))):
            raise ConfigError(explain(str(error), config)) from error
        raise


def _states_a_run_dir(config: Config) -> bool:
    """Whether a file says where the run is kept; the record of a run that was moved says where it was."""
    place = config.places.get(("run_dir",), "")
    return bool(place) and Path(place.rpartition(":")[0]).name != "config.yaml"


def _names_a_setting(sentence: str) -> bool:
    return re.match(r"(stage|hardware|data|model|trainer|run_dir)[.\w]*: ", sentence) is not None


def _raised_in_settings(error: BaseException) -> bool:
    """Whether jsonargparse raised it while it checked values, as opposed to code that a value was handed to."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and "jsonargparse" in trace.tb_frame.f_code.co_filename


def _quieten() -> None:
    """Leave out what Lightning says on every run: devices found, tips, deprecations inside its own code."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*LeafSpec.*",
        ".*does not have many workers.*",
        ".*across ranks is zero.*",
        ".*litlogger.*",
        ".*in eval mode.*",
        ".*no `val_dataloader`.*",
    ):
        warnings.filterwarnings("ignore", message=message)


def main(arguments: Sequence[str]) -> None:
    """`mllm fit ...` and the three other verbs of LightningCLI; `arguments[0]` is the verb."""
    if "--help" in arguments or "-h" in arguments:
        os.environ.setdefault("COLUMNS", "120")
        CLI(arguments)
    else:
        compose(arguments)
        sys.stdout.flush()
