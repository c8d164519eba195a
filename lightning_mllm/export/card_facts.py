"""The facts of a run that its model card states: its stages, their training data and freeze tables, and its scores."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser
from lightning import LightningDataModule

from lightning_mllm.commands.config import Config, ConfigError
from lightning_mllm.commands.merge import check_keys
from lightning_mllm.commands.trust import build_typed_classes_alone
from lightning_mllm.evaluation.run_folder import read_metrics, read_report
from lightning_mllm.export.record import Origin
from lightning_mllm.inference.loading import settings_of
from lightning_mllm.weights.hub import NAME
from lightning_mllm.weights.lineage import RECORD, WEIGHTS, InitSource
from lightning_mllm.weights.run_records import read_stage

UNKNOWN = "unknown"
DRAWN = "drawn by `mllm world`: nobody's pictures"
TRAINING = ("train", "weights", "factors", "group", "per_device_batch", "class_path")


@dataclass(frozen=True, kw_only=True)
class MixedSource:
    """A training source."""

    name: str
    kind: str
    """Its class."""
    samples: int | None
    """None where its files are not on this machine."""
    share: float | None
    licence: str
    otherwise: str = UNKNOWN
    """In place of a share that there is none of."""


@dataclass(frozen=True, kw_only=True)
class StageFacts:
    """One stage, read from its folder."""

    name: str
    folder: Path

    @cached_property
    def record(self) -> Mapping[str, Any]:
        return read_stage(self.folder / WEIGHTS / RECORD)

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        return settings_of(self.folder)

    @property
    def steps(self) -> int:
        return int(self.record["steps"])

    @property
    def seconds(self) -> float:
        return float(self.record.get("settings", {}).get("seconds", 0.0))

    @property
    def freeze_table(self) -> list[Mapping[str, Any]]:
        """Rows of part, parameters, trained, lr, weight_decay, dtype."""
        return list(self.record.get("settings", {}).get("freeze_table", []))

    @property
    def loss(self) -> list[tuple[float, float]]:
        """Step and training loss."""
        return read_metrics(self.folder / "metrics.csv").get("train/loss", [])

    @cached_property
    def mixture(self) -> list[MixedSource]:
        """What it was trained on, with shares where the files are here."""
        data = self.settings.get("data") or {}
        train: Mapping[str, Any] = (data.get("init_args") or {}).get("train") or {}
        counts = _counts(data)
        total = sum(each for _, each in counts.values())
        text = ((data.get("init_args") or {}).get("text") or {}).get("source") or {}
        beside = MixedSource(
            name="text",
            kind=str(text.get("class_path", "")).rpartition(".")[2],
            samples=None,
            share=None,
            licence=_licence(text),
            otherwise="rows of plain text beside every step",
        )
        found = [
            MixedSource(
                name=name,
                kind=str(source.get("class_path", "")).rpartition(".")[2],
                samples=counts[name][0] if counts else None,
                share=counts[name][1] / total if counts else None,
                licence=_licence(source),
            )
            for name, source in train.items()
        ]
        return [*found, beside] if text else found


def _licence(source: object) -> str:
    return DRAWN if any((each / "world.json").is_file() for each in _parents(source)) else UNKNOWN


def _counts(data: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Source -> its samples, and how many of them an epoch takes; nothing where the files cannot be read here."""
    given = {key: each for key, each in (data.get("init_args") or {}).items() if key in TRAINING}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data")
    build_typed_classes_alone()
    try:
        stated = json.loads(json.dumps({"class_path": data.get("class_path"), "init_args": given}))
        check_keys(stated, LightningDataModule, Config(), ("data",))  # the run may be a stranger's
        module: Any = parser.instantiate(parser.parse_object({"data": stated}))["data"]
        counts = module.order.counts  # reads the annotations; no picture is opened
        return {name: (len(source), counts[name]) for name, source in module.train.items()}
    except (ArgumentError, ConfigError, ValueError, OSError, AttributeError, KeyError):
        return {}


def _parents(node: object) -> Iterator[Path]:
    """Folders above the files that a source names."""
    if isinstance(node, Mapping):
        for each in node.values():
            yield from _parents(each)
    elif isinstance(node, str) and "/" in node:
        yield from Path(node).parents


@dataclass(frozen=True, kw_only=True)
class Score:
    """A score of the test with its interval, and the same of the blind test."""

    name: str
    label: str
    part: str
    set: str
    value: float
    low: float
    high: float
    blind: Mapping[str, float] | None


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """The facts of a run, or of a folder of transformers."""

    name: str
    stages: list[StageFacts]
    """In the order of training; none for a folder of transformers."""
    scores: list[Score]
    bases: list[str]
    """Names on the Hub of what it started from."""
    examples: list[dict[str, Any]]
    """As `tested` gives them."""

    @classmethod
    def of(cls, origin: Origin) -> CardFacts:
        """Of a run; of a folder nothing but its name is known."""
        if origin.stage is None:
            return cls(name=origin.path.name, stages=[], scores=[], bases=[], examples=[])
        stages = [*_ancestors(origin), StageFacts(name=origin.stage.name, folder=origin.stage)]
        bases = sorted({name for stage in stages for name in _hub_names(stage.settings.get("model"))})
        root = origin.stage.resolve().parent
        parts = root.parts
        name = "/".join(parts[parts.index("runs") + 1 :]) if "runs" in parts[:-1] else root.name
        return cls(name=name, stages=stages, scores=_scores(origin.stage), bases=bases, examples=origin.examples)


def _ancestors(origin: Origin) -> Iterator[StageFacts]:
    """The stages that the weights descend from, the earliest first, as far as they are here and unchanged."""
    runs = Path(origin.settings["runs"])
    for used in origin.record["lineage"]:
        try:
            source = InitSource.find(used["source"], runs, origin.stage, used)
        except ValueError:
            continue  # it was moved or deleted
        if source.record is not None and source.record["sha256"] == used["sha256"]:
            folder = source.path.parent
            yield StageFacts(name=folder.name, folder=folder)


def _scores(stage: Path) -> list[Score]:
    try:
        tests = [each for each in read_report(stage.parent).tests if each.stage == stage.name]
    except ValueError:
        return []
    return [
        Score(
            name=row.info.name,
            label=row.info.label,
            part=row.part,
            set=f"{stage.parent.name} test" + (f", {row.part}" if row.part else ""),
            value=row.found["value"],
            low=row.found["low"],
            high=row.found["high"],
            blind=row.blind,
        )
        for test in tests
        for row in test.rows
    ]


def _hub_names(node: object, key: str = "") -> Iterator[str]:
    """OWNER/NAME wherever a model or its weights are named so."""
    if isinstance(node, Mapping):
        for name, each in node.items():
            yield from _hub_names(each, name)
    elif isinstance(node, list):
        for each in node:
            yield from _hub_names(each, key)
    elif (
        key in ("model", "weights", "bert")
        and isinstance(node, str)
        and NAME.fullmatch(node)
        and not Path(node).exists()
    ):
        yield node
