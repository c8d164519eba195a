"""The stages of an experiment as their data and their processor see them: composed as `mllm fit` would, nothing built.

`mllm data check`, `mllm preview` and `mllm doctor` read them. Each part is made when it is first asked for, so that
what one lacks (a tokenizer, a file of annotations) is no matter to the others.

    experiment, or one file --composed_stages--> ComposedStage   .resolved    every setting
                                                                 .data        the data module, no file read yet
                                                                 .module      the net's specs, and its processor
                                                                 .sets()      what it trains on, and is scored on
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import jsonargparse
import torch
import yaml
from lightning import LightningDataModule

from lightning_mllm.commands.command_line import SETTINGS
from lightning_mllm.commands.config import Config, ConfigError, nearest
from lightning_mllm.commands.experiments import experiment_folder, experiment_name, hardware_file, order_of_stages
from lightning_mllm.commands.hardware import Hardware
from lightning_mllm.commands.launch import ParsedCLI, compose
from lightning_mllm.commands.run import overrides_of
from lightning_mllm.commands.secrets import revealed
from lightning_mllm.commands.wrong_values import in_one_sentence
from lightning_mllm.contracts import Sample
from lightning_mllm.processing.processor import Processor
from lightning_mllm.training.module import MultimodalModule

Split = Literal["train", "val", "test"]
Made = TypeVar("Made")


class Source(Protocol):
    """What is asked of a source of samples (`data_modules.sources.Source`)."""

    def load(self) -> None:
        """Reads and checks everything but the pixels."""
        ...

    def __len__(self) -> int: ...

    def has_image(self, index: int) -> bool: ...

    def where(self, index: int) -> str:
        """File and record that a sample is read from; empty where that is not known."""
        ...


class StageDataModule(Protocol):
    """What is asked of every data module of a stage (`data_modules.module`)."""

    processor: Any

    @property
    def optimizer_steps(self) -> int:
        """Of the whole stage."""
        ...


@runtime_checkable
class TrainsOnSources(Protocol):
    """A data module of named sources (`data_modules.module.MultimodalDataModule`)."""

    train: Mapping[str, Any]

    def training_sample(self, name: str, index: int) -> tuple[Sample, torch.Generator]:
        """As the first epoch shows it, and the generator that its picture draws from."""
        ...


@dataclass(frozen=True, kw_only=True)
class SampleSet:
    """A source of training samples, rows of plain text, or a set that is scored; `load` comes before all else."""

    split: Split
    name: str
    """As in `data.SPLIT.NAME`; "text" for rows of plain text."""
    source: Any
    """The `Source` that its samples come from."""
    data: Any
    evaluation: Any = None
    """The `EvaluationSet` of what is scored."""
    rows: bool = False
    """Whether its samples are rows of plain text, packed."""

    @property
    def title(self) -> str:
        return f"data.{self.name}" if self.rows else f"data.{self.split}.{self.name}"

    @property
    def task(self) -> str:
        """What is asked of a set that is scored; "" in training, and in "loss" the answers are learned as there."""
        return "" if self.evaluation is None else self.evaluation.task

    @property
    def generates(self) -> bool:
        """Whether the net is given prompts without answers."""
        return self.evaluation is not None and self.task != "loss"

    def load(self) -> None:
        """Reads the annotations; no image is opened.

        Raises:
            ValueError: one is missing or wrong; names the set.
        """
        try:
            self.source.load()
        except ValueError as error:
            raise ValueError(f"{self.title}: {error}") from error

    @cached_property
    def questions(self) -> list[tuple[int, int | None]]:
        """Of what is scored: index in the source, and which of the questions of that sample."""
        return self.evaluation.questions()

    def __len__(self) -> int:
        if self.rows:
            return len(self.data.rows)
        return len(self.source) if self.evaluation is None else len(self.questions)

    def sample(self, index: int) -> tuple[Sample, torch.Generator | None]:
        """Sample `index`, and what the picture draws from in training.

        Raises:
            ValueError: the record breaks a rule.
        """
        if self.rows:
            return self.data.rows.sample(self.data.rows.at(index)), None
        if self.evaluation is not None:
            return self.evaluation.sample(*self.questions[index]), None
        return self.data.training_sample(self.name, index)

    def where(self, index: int) -> str:
        """File and record of sample `index`; empty where that is not known."""
        if self.rows:
            return ""
        return self.source.where(index if self.evaluation is None else self.questions[index][0])


@dataclass(frozen=True, kw_only=True)
class ComposedStage:
    """One stage; every property raises ValueError, in one sentence, for what is wrong or absent."""

    experiment: str
    """The path below `experiments`."""
    name: str
    command: tuple[str, ...]
    """The arguments by which `mllm` would train it."""

    @property
    def title(self) -> str:
        return f"{self.experiment}/{self.name}"

    @cached_property
    def cli(self) -> ParsedCLI:
        """Parsed and checked."""
        found = compose(self.command, ParsedCLI)
        assert isinstance(found, ParsedCLI)
        return found

    @cached_property
    def resolved(self) -> dict[str, Any]:
        """Every setting, defaults included, without secrets."""
        return dict(self.cli.resolved)

    @cached_property
    def module(self) -> MultimodalModule:
        """The net that the stage trains, not built: its specs, its freezing table and its processor.

        Tokenizers are read, weights are not.
        """
        return module_of(self.resolved)

    @property
    def processor(self) -> Processor:
        return self.module.processor

    @property
    def data_settings(self) -> dict[str, Any]:
        """What the configuration says of the data module, with what it refers to, and what it is given of the stage and
        the hardware: the global batch, epochs, the seed."""
        cli = self.cli
        told = cli._parser(cli.config.subcommand).dump(cli.settings, skip_unset=False, skip_link_targets=False)
        given = revealed(yaml.safe_load(told))
        assert isinstance(given, dict)
        return given["data"]

    @cached_property
    def data(self) -> StageDataModule:
        """The data module, without a processor (`with_processor` links it); no file has been read."""
        return data_module(self.data_settings)

    def with_processor(self) -> StageDataModule:
        """The data module with the net's processor, as training links them."""
        self.data.processor = self.processor
        return self.data

    def sets(self) -> Iterator[SampleSet]:
        """The sources that the stage trains on, its plain text, then the sets that it is scored on; none is loaded."""
        data = self.data
        if isinstance(data, TrainsOnSources):
            for name, source in data.train.items():
                yield SampleSet(split="train", name=name, source=source, data=data)
        text = getattr(getattr(data, "text", None), "source", None)
        plain = getattr(data, "source", None) if text is None else text
        if plain is not None:
            name = "source" if text is None else "text"
            yield SampleSet(split="train", name=name, source=plain, data=data, rows=True)
        splits: tuple[Split, ...] = ("val", "test")
        for split in splits:
            for name, each in (getattr(data, split, None) or {}).items():
                yield SampleSet(split=split, name=name, source=each.source, data=data, evaluation=each)


def composed_stages(
    given: str | Path, *, hardware: str = "cpu", only: str | None = None, overrides: Sequence[str] = ()
) -> list[ComposedStage]:
    """The stages of an experiment, in the order in which they are trained; or the one that a file describes.

    Args:
        given: An experiment, as of `mllm run`, or a YAML file of one stage; `net.yaml` beside it is read with it.
        hardware: A file of `_hardware`, or its name.
        only: This stage alone.
        overrides: Settings as on the command line of `mllm run`.

    Raises:
        ConfigError: There is no such experiment, file or stage. What the files say is checked when it is asked for.
    """
    path = Path(given)
    if path.suffix == ".yaml" and not path.is_file():
        raise ConfigError(f"{path}: found no such file, expected an experiment or a YAML file of one stage")
    folder = path.parent if path.is_file() else experiment_folder(path)
    stages = [path.stem] if path.is_file() else order_of_stages(folder)
    if only is not None and only not in stages:
        raise ConfigError(f"--stage: found '{only}', expected one of {', '.join(stages)}{nearest(only, stages)}")
    chosen = [stage for stage in stages if only in (None, stage)]
    settings = overrides_of(overrides, stages, chosen)
    net = folder / "net.yaml"
    shared = [net] if net.is_file() and net != path else []
    machine = hardware_file(folder, hardware)
    return [
        ComposedStage(
            experiment=experiment_name(folder),
            name=stage,
            command=(
                "fit",
                *(f"--config={each}" for each in (*shared, folder / f"{stage}.yaml", machine)),
                *settings[stage],
            ),
        )
        for stage in chosen
    ]


def module_of(resolved: Mapping[str, Any]) -> MultimodalModule:
    """The net of a resolved configuration, not built, with its stage and its parallel plan.

    Raises:
        ValueError: A tokenizer or a configuration that it names is absent, or parts do not fit one another.
    """
    given = revealed({"model": resolved["model"]})
    assert isinstance(given, dict)
    model = given["model"]
    model["init_args"] = {**model["init_args"], "stage": resolved["stage"]}
    module = instantiated(MultimodalModule, "model", model)
    module.parallel = Hardware(**resolved["hardware"])
    return module


def data_module(settings: Mapping[str, Any]) -> StageDataModule:
    """The data module of its part of a resolved configuration; no file has been read."""
    return _instantiated(LightningDataModule, "data", settings)["data"]


def instantiated(base: type[Made], key: str, value: object) -> Made:
    """What a resolved configuration says under `key`, made; ConfigError, in one sentence, where it refuses itself."""
    return _instantiated(base, key, value)[key]


def _instantiated(base: type, key: str, value: object) -> jsonargparse.Namespace:
    """With that under `key`, made."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(base, key, required=True)
    try:
        return parser.instantiate(parser.parse_object({key: value}))
    except (jsonargparse.ArgumentError, ValueError, KeyError) as error:
        told = in_one_sentence(error, {key: value}, SETTINGS, Config())
        if told is None:
            raise
        raise told from error
