"""`mllm fit|validate|test|predict`: LightningCLI over any architecture and any data module that YAML names."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from contextvars import copy_context
from functools import cached_property, partial
from importlib.resources import files
from pathlib import Path
from typing import Union, get_args

import jsonargparse
import torch
import yaml
from lightning import LightningDataModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lightning_mllm import signals
from lightning_mllm.commands import run_folder
from lightning_mllm.commands.beginning import begin
from lightning_mllm.commands.checked_settings import check_settings, check_sources
from lightning_mllm.commands.command_line import SETTINGS, read_command_line
from lightning_mllm.commands.config import ConfigError
from lightning_mllm.commands.finished import allowed_names, check_done, checkpoint_of, is_done, note_test
from lightning_mllm.commands.hardware import Hardware, at_once
from lightning_mllm.commands.help import asks_for_help, show_help
from lightning_mllm.commands.lock import locked
from lightning_mllm.commands.loggers import fill_run_dir, loggers_of
from lightning_mllm.commands.quiet import quieten
from lightning_mllm.commands.recipe import recipe_of, test_settings
from lightning_mllm.commands.requeue import requeued
from lightning_mllm.commands.secrets import recorded, revealed
from lightning_mllm.commands.trust import restrict_imports
from lightning_mllm.commands.wrong_values import in_one_sentence, refused_by_trainer
from lightning_mllm.contracts import accumulation
from lightning_mllm.evaluation.checks import check_sets, check_training
from lightning_mllm.training.cached_features import use_cached_features
from lightning_mllm.training.callbacks.failed_step import FailedStep
from lightning_mllm.training.callbacks.feature_check import FeatureCheck
from lightning_mllm.training.callbacks.metrics_csv import MetricsCsv
from lightning_mllm.training.callbacks.progress import StageProgress
from lightning_mllm.training.callbacks.record import StageRecord
from lightning_mllm.training.callbacks.rng import RandomStates
from lightning_mllm.training.callbacks.signals import StageSignals
from lightning_mllm.training.callbacks.throughput import Throughput
from lightning_mllm.training.callbacks.tracking import Tracking
from lightning_mllm.training.module import MultimodalModule
from lightning_mllm.training.precision import check_device, check_precision
from lightning_mllm.training.sharding import ShardedStrategy
from lightning_mllm.training.skipped_steps import SkipLimits
from lightning_mllm.training.stage import StageSettings, passes, together
from lightning_mllm.weights.files import write_text

DEFAULTS = Path(str(files("lightning_mllm") / "defaults" / "fit.yaml"))


def whole_numbers_first(parser: jsonargparse.ArgumentParser) -> None:
    """Of a number that may be whole or not, `1` stays whole: one batch, where `1.0` is all of them.

    `typing` keeps one of Union[int, float] and Union[float, int] for both, whichever a library asked for first, and
    jsonargparse takes the first type that fits.
    """
    for action in parser._actions:
        kinds = get_args(getattr(action, "_typehint", None))
        if int in kinds and float in kinds and kinds.index(float) < kinds.index(int):
            action._typehint = Union[(int, *(each for each in kinds if each is not int))]  # pyright: ignore


class StageIsDone(Exception):
    """What is asked for has been trained already, under the same settings."""


@rank_zero_only
def say(sentence: str) -> None:
    print(sentence)


class CLI(LightningCLI):
    """LightningCLI with the stage, the hardware and the run folder as groups of their own.

    Precedence: package defaults < `--config` files from left to right < command line.
    """

    def __init__(self, arguments: Sequence[str], overwrite: bool = False, allowed: Sequence[str] = ()) -> None:
        self.verb, self.overwrite, self.allowed = arguments[0], overwrite, allowed
        with requeued(lambda: not hasattr(self, "config") or self.settings.hardware.requeue), ExitStack() as self._held:
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
        parser.add_argument(
            "--checkpoint_every", type=int | str, default=200, help="Optimizer steps or time (15m) between checkpoints."
        )
        parser.add_argument("--skipped_steps", type=SkipLimits, default=SkipLimits(), help="How many, before it ends.")
        parser.add_argument("--checkpoint_keep", type=int, default=2, help="How many checkpoints stay on the disk.")
        whole_numbers_first(parser)
        parser.link_arguments("stage", "model.init_args.stage")
        parser.link_arguments("stage.global_batch", "data.init_args.global_batch")
        parser.link_arguments("stage.epochs", "data.init_args.epochs", compute_fn=passes)
        parser.link_arguments("stage.steps", "data.init_args.steps")
        parser.link_arguments(
            ("stage.micro_batch", "hardware.micro_batch"), "data.init_args.micro_batch", compute_fn=at_once
        )
        parser.link_arguments(
            ("stage.per_device_batch", "stage.micro_batch"), "data.init_args.per_device_batch", compute_fn=together
        )
        names = ("text_micro_batch", "pack", "token_budget", "image_cost", "workers", "worker_timeout", "eval_batch")
        for name in names:
            parser.link_arguments(f"hardware.{name}", f"data.init_args.{name}")
        parser.link_arguments("seed_everything", "data.init_args.seed")
        parser.link_arguments("run_dir", "trainer.default_root_dir")
        parser.link_arguments("model.processor", "data.init_args.processor", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Sequence[str]) -> None:  # pyright: ignore
        self.config = parser.parse_args(args)
        check_settings(self.settings)

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

    @cached_property
    def record(self) -> str:
        """Every setting, defaults included, as YAML, without secrets; taken before names of sibling stages become
        paths, so that a copied experiment is the same recipe.
        """
        text = self._parser(self.config.subcommand).dump(self.settings, skip_unset=False)
        known = recorded(tree := yaml.safe_load(text))
        return text if known == tree else yaml.safe_dump(known, sort_keys=False, allow_unicode=True)

    @cached_property
    def resolved(self) -> dict[str, object]:
        """The same as a tree."""
        return yaml.safe_load(self.record)

    @cached_property
    def recipe(self) -> dict[str, object]:
        """What decides the result: what training reads."""
        return recipe_of(self.resolved)

    @cached_property
    def test_settings(self) -> dict[str, object]:
        """What decides the scores of a test of given weights."""
        return test_settings(self.resolved)

    def is_done(self) -> bool:
        """Whether the run folder holds the weights of this stage.

        Raises:
            ConfigError: They were trained under other settings.
        """
        return not self.overwrite and is_done(self.run_dir, self.recipe, self.allowed)

    def checkpoint(self) -> Path | None:
        """The folder of checkpoints from which this stage goes on, if it was stopped.

        Raises:
            ConfigError: They were written under other settings, or are gone.
        """
        return None if self.overwrite else checkpoint_of(self.run_dir, self.recipe, self.allowed)

    def before_instantiate_classes(self) -> None:
        _ = self.recipe
        revealed(self.settings)
        fill_run_dir(self.settings, str(self.run_dir))
        run_folder.check_ckpt_path(self.settings.get("ckpt_path"))
        run_folder.check_writable_folders(self.run_dir, self.verb)
        if self.subcommand == "fit":
            self._held.enter_context(locked(self.run_dir))
            self._go_on()
        sources = self.settings["stage"]["init_from"]
        if self.subcommand != "fit" and not self.settings.get("ckpt_path"):
            sources = self._own_weights(sources)
        sources = {self._sibling(name): weight for name, weight in sources.items()}
        check_sources(sources, Path(self.settings.runs))
        self.settings["stage"]["init_from"] = sources
        self.settings["model"]["init_args"]["stage"]["init_from"] = sources

    def _go_on(self) -> None:
        """Never train over what is in the run folder: it is done, goes on, or is refused."""
        if self.settings["trainer"]["fast_dev_run"]:
            return  # it begins at the beginning, and keeps nothing
        if self.is_done():
            raise StageIsDone(f"{self.run_dir} is done")
        last = self.checkpoint()
        if last is not None and not self.settings.get("ckpt_path"):
            self.settings["ckpt_path"] = str(last)
        run_folder.say_what_is_ignored(self.run_dir)

    def _own_weights(self, sources: dict[str, float]) -> dict[str, float]:
        """Validate and test what this run has trained; before it has, what the stage would start from."""
        if (self.run_dir / "weights" / "stage.json").is_file():
            return {str(self.run_dir.resolve()): 1.0}
        if not sources:
            raise ConfigError(
                f"run_dir: found no weights in {self.run_dir}, expected those of a finished run; train it with mllm fit"
            )
        say(f"{self.run_dir} is not trained; {self.verb} uses what it would start from: {', '.join(sources)}")
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
        self.model.parallel = self._get(self.config_init, "hardware")
        self.model.skipped.limits = self._get(self.config_init, "skipped_steps")
        if self.subcommand == "fit" and (cache := self.settings["hardware"]["feature_cache"]) is not None:
            use_cached_features(self.model, self.datamodule, Path(cache))

    def instantiate_trainer(self, **kwargs: object) -> Trainer:
        given = self._get(self.config_init, "trainer")
        callbacks = [*(given["callbacks"] or []), RandomStates()]
        callbacks += [run_folder.stage_checkpoint(self.settings, self.verb), StageSignals()]
        if self.subcommand == "fit":
            callbacks += [StageRecord(self.recipe), Throughput(), FeatureCheck(), FailedStep()]
        tracking = next((each for each in callbacks if isinstance(each, Tracking)), None)
        if tracking is None:
            callbacks.append(tracking := Tracking())
        tracking.settings = self.resolved
        if given["enable_progress_bar"] is not False:
            callbacks.append(StageProgress())
        loggers: list[Logger] = [MetricsCsv(str(self.run_dir / "metrics.csv"))] if self.subcommand == "fit" else []
        loggers += loggers_of(given["logger"], self.run_dir, self.verb, self.settings.runs)
        try:
            trainer = super().instantiate_trainer(callbacks=callbacks, logger=loggers, **kwargs)
        except (MisconfigurationException, ValueError, TypeError, ImportError, RuntimeError) as error:
            raise ConfigError(f"{refused_by_trainer(given)}: {' '.join(str(error).split())}") from error
        run_folder.load_nothing_unasked(trainer, self.settings.get("ckpt_path"))
        sharded = isinstance(trainer.strategy, ShardedStrategy)
        hardware = self._get(self.config_init, "hardware")
        check_precision(str(trainer.precision), sharded, hardware)
        check_device(trainer.strategy.root_device.type, hardware)
        return trainer

    def before_fit(self) -> None:
        stage, hardware, world = self.settings["stage"], self.settings["hardware"], self.trainer.world_size
        # A data module may take more in a step than the global batch.
        own = getattr(self.datamodule, "accumulation", None) or partial(
            accumulation,
            "stage.global_batch",
            stage["global_batch"],
            at_once(stage["micro_batch"], hardware["micro_batch"]),
        )
        self.trainer.accumulate_grad_batches = own(world)
        if (every := stage["validate_every"]) is not None:
            self.trainer.val_check_interval = every * self.trainer.accumulate_grad_batches
            self.trainer.check_val_every_n_epoch = None
        if not self.overwrite:
            self.model.drift = allowed_names(self.run_dir, self.allowed)
        self.write_config()

    @rank_zero_only
    def write_config(self) -> None:
        """`config.yaml` in the run folder: every value, defaults included; `mllm fit --config` takes it again."""
        if self.trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue]
            return
        parts = self.trainer, self.model, self.datamodule
        begin(self.run_dir, self.recipe, self.settings, *parts, self.allowed, anew=self.overwrite)
        write_text(self.run_dir / "config.yaml", self.record)

    def after_fit(self) -> None:
        signals.release()
        if not self.trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue]
            check_done(self.run_dir)

    @rank_zero_only
    def after_test(self) -> None:
        note_test(self.run_dir, self.test_settings)


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


class CheckedCLI(ParsedCLI):
    """The same, and the data is read that the verb needs: what `fit` trains on, and what it, and a test, is scored on.

    No net is built, no image is opened.
    """

    def _run_subcommand(self, subcommand: str) -> None:
        parser = jsonargparse.ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(LightningDataModule, "data", required=True)
        given = revealed(yaml.safe_load(self._parser(self.config.subcommand).dump(self.settings, skip_unset=False)))
        assert isinstance(given, dict)
        data = parser.instantiate(parser.parse_object({"data": given["data"]}))["data"]
        check_sets(data, ("val", "test") if subcommand == "fit" else ("test",))
        if subcommand == "fit":
            check_training(data)


def compose(arguments: Sequence[str], kind: type[CLI] = CLI) -> CLI:
    """Check a whole command line, then build and run it (or, with `ParsedCLI`, only resolve it).

    Raises:
        ConfigError: The configuration is wrong; nothing has been built then.
        StageIsDone: The run folder holds what `fit` would train.
    """
    restrict_imports()
    told, tree, config = read_command_line(arguments[1:])
    overwrite = config.flags.get("overwrite")
    if overwrite not in (None, "true", "false") or (overwrite is not None and arguments[0] != "fit"):
        raise ConfigError(f"--overwrite: found '{overwrite}', expected true or false, and mllm fit or mllm run")
    quieten()
    try:
        allowed = tuple(filter(None, config.flags.get("allow_drift", "").split(",")))
        return kind([arguments[0], f"--config={DEFAULTS}", *told], overwrite=overwrite == "true", allowed=allowed)
    except (jsonargparse.ArgumentError, ValueError, KeyError, NotImplementedError) as error:
        told_so = in_one_sentence(error, tree, SETTINGS, config)
        if told_so is None:
            raise
        raise told_so from error


def run_and_release(arguments: Sequence[str]) -> None:
    """Run one verb, and give back what its net and its optimizer held before the next one builds its own."""
    # jsonargparse leaves its last parser, and what it built, in a context variable.
    copy_context().run(compose, arguments)
    # A Trainer, its module and its loops name one another.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def main(arguments: Sequence[str]) -> None:
    """`mllm fit ...` and the three other verbs of LightningCLI; `arguments[0]` is the verb."""
    os.environ.setdefault("COLUMNS", "120")
    if asks_for_help(arguments):
        show_help(arguments[1:])
    elif "--help" in arguments or "-h" in arguments:
        CLI(arguments)
    else:
        try:
            compose(arguments)
        except StageIsDone as done:
            say(str(done))
        sys.stdout.flush()
