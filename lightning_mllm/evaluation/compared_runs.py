"""The runs that are compared, as their folders tell: scores, answers, settings and cost.

RUN          the last tested stage of a run folder
RUN/STAGE    that one
SEEDS        a folder with a run folder for each seed (seed-0, seed-1, ...): one side of several runs
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_mllm.evaluation.answers import AnsweredSet, read_answers
from lightning_mllm.evaluation.flops import training_flops
from lightning_mllm.evaluation.results import TEST_ANSWERS
from lightning_mllm.evaluation.run_folder import Tested, experiment_of, read_metrics, read_report, read_tested
from lightning_mllm.weights.lineage import RECORD, WEIGHTS, starts_from
from lightning_mllm.weights.run_records import read_config, read_record

SEED = re.compile(r"seed-\d+")
"""How the folder of one seed is called."""
SEED_SETTING = "seed_everything"
NOT_SET = "(not set)"
ELSEWHERE = (
    *("run_dir", "runs", "ckpt_path", "weights_only", "checkpoint_every", "checkpoint_keep"),
    "trainer.default_root_dir",
)
"""Settings that say where a run is kept, and change nothing of it."""

Settings = Mapping[str, object]
"""Dotted key, without the `init_args` in between -> value."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a stage took, with the stages of its run that it starts from."""

    seconds: float
    """Of training, over all restarts."""
    steps: int
    samples: int | None
    """Seen in training: steps x global batch; None where no configuration tells the batch."""
    tokens: float | None
    """Read in training, image slots included; None where `metrics.csv` has no throughput."""
    parameters: int
    """Of the whole net; 0 where no freeze table was written."""
    trained: int
    """Of these, how many the stage itself trained."""
    flops: float | None
    """An estimate, tokens x (4 x parameters + 2 x trained) of each stage: the forward pass and the gradient of the
    activations take 2 each, that of trained weights 2. Attention's own products are left out, and every parameter
    counts for every token."""


@dataclass(frozen=True, kw_only=True)
class ComparedRun:
    """A tested stage of one run."""

    name: str
    stage: str
    folder: Path
    tested: Tested
    answers: Mapping[str, AnsweredSet]
    settings: Mapping[str, Settings]
    """Of the stage under '', of those of the same run that it starts from under their names."""
    curves: Mapping[str, Sequence[tuple[float, float]]]
    """Of the stage."""
    cost: Cost


@dataclass(frozen=True, kw_only=True)
class Side:
    """One run, or several that differ in their seed alone."""

    name: str
    runs: tuple[ComparedRun, ...]


def read_sides(paths: Sequence[Path], runs: Path) -> list[Side]:
    """One side a path; a folder of seeds is one side, and so are seeds of one experiment that are given one by one
    where those of another are given too.

    Args:
        paths: run folders, stages or folders of seeds; names below `runs` too.
        runs: where runs are kept.

    Raises:
        ValueError: one of them is no tested run, or is given twice.
    """
    sides: dict[Path, list[Path]] = {}
    found = [_located(path, runs) for path in paths]
    parents = {path.parent for path in found if SEED.fullmatch(path.name)}
    for path in found:
        seeds = sorted(path.glob("seed-*"), key=_number) if not (path / "test.json").is_file() else []
        own = [each for each in seeds if SEED.fullmatch(each.name) and each.is_dir()]
        key = path.parent if not own and len(parents) > 1 and path.parent in parents else path
        sides.setdefault(key, []).extend(own or [path])
    every = [each.resolve() for side in sides.values() for each in side]
    if twice := next((each for each in every if every.count(each) > 1), None):
        raise ValueError(f"compare: found {twice} a second time, expected different runs")
    names = _names(list(sides), runs)
    return [_side(names[key], side) for key, side in sides.items()]


def side_of_seeds(folders: Sequence[Path]) -> Side:
    """Runs of one folder that differ in their seed alone, and no other runs of that folder.

    Raises:
        ValueError: as `read_run`.
    """
    experiment = folders[0].parent
    return _side(experiment_of(experiment, experiment.parent), folders)


def _side(name: str, folders: Sequence[Path]) -> Side:
    named = {each: name if len(folders) == 1 else f"{name}/{each.name}" for each in folders}
    return Side(name=name, runs=tuple(read_run(each, own) for each, own in named.items()))


def read_run(path: Path, name: str) -> ComparedRun:
    """The last tested stage of a run folder, or the stage that `path` is.

    Raises:
        ValueError: it was not tested, or not all of its answers can be scored again.
    """
    folder = path
    if not (path / "test.json").is_file():
        if not any(path.glob("*/test.json")):
            raise ValueError(f"compare: found no test.json in {path} or its stages, expected a run that was tested")
        folder = path / read_report(path).tests[-1].stage
    if not (folder / TEST_ANSWERS).is_file():
        raise ValueError(f"compare: found no {folder / TEST_ANSWERS}, expected the answers of the test; test it again")
    records = {
        file.parents[1].name: read_record(file, needs=("steps",))
        for file in sorted(folder.parent.glob(f"*/{WEIGHTS}/{RECORD}"))
    }
    before = _ancestors(folder.name, records)
    settings = {"": read_settings(folder), **{each: read_settings(folder.parent / each) for each in before}}
    return ComparedRun(
        name=name,
        stage=folder.name,
        folder=folder,
        tested=read_tested(folder),
        answers=read_answers(folder / TEST_ANSWERS),
        settings=settings,
        curves=read_metrics(folder / "metrics.csv"),
        cost=_cost(folder, [*before, folder.name], records, settings),
    )


def read_settings(folder: Path) -> Settings:
    """The resolved configuration of a stage, flat, without what says where it is kept; empty where there is none."""
    file = folder / "config.yaml"
    if not file.is_file():
        return {}
    found: dict[str, object] = {}
    _flatten(read_config(file, needs=()), "", found)
    return {key: value for key, value in found.items() if key not in ELSEWHERE}


def differing(first: Settings, other: Settings) -> list[tuple[str, object, object]]:
    """Key, value and other value where two settings differ, or '(not set)'. A file named from another folder is the
    same one. A part that only one of them has is one row, its class or its settings; where a class differs, what only
    one of both takes is left out."""
    found: dict[str, tuple[object, object]] = {}
    inside = [{prefix for key in known for prefix in _prefixes(key)} for known in (first, other)]
    for key in sorted({*first, *other}):
        if key in first and key in other:
            if first[key] != other[key] and not _same_file(first[key], other[key]):
                found[key] = (first[key], other[key])
            continue
        lacking, parts = (other, inside[1]) if key in first else (first, inside[0])
        classes = [f"{each}.class_path" for each in _prefixes(key)[:-1]]
        if any(first.get(each) != other.get(each) for each in classes if each in first and each in other):
            continue
        part = next((each for each in _prefixes(key) if each in lacking or each not in parts), key)
        found[part] = (_value(first, part), _value(other, part))
    return [(key, *values) for key, values in sorted(found.items())]


def _prefixes(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts) + 1)]


def _value(known: Settings, part: str) -> object:
    """What is set, of a part with settings of its own its class or all of them."""
    own = {key.removeprefix(f"{part}."): value for key, value in known.items() if key.startswith(f"{part}.")}
    return known.get(part, own.get("class_path") or own.get("source.class_path") or own or NOT_SET)


def _same_file(one: object, two: object) -> bool:
    if not (isinstance(one, str) and isinstance(two, str)) or os.sep not in one or os.sep not in two:
        return False
    short, long = sorted((Path(one).parts, Path(two).parts), key=len)
    return long[-len(short) :] == short


def _flatten(tree: object, path: str, found: dict[str, object]) -> None:
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            _flatten(value, path if key == "init_args" else f"{path}.{key}".lstrip("."), found)
    else:
        found[path] = tree


def _located(path: Path, runs: Path) -> Path:
    known = next((each for each in (path, runs / path) if each.is_dir()), None)
    if known is None:
        raise ValueError(f"compare: found no folder {path}, nor one of that name in {runs}, expected a run")
    return known


def _number(path: Path) -> int:
    digits = path.name.rpartition("-")[2]
    return int(digits) if digits.isdigit() else -1


def _names(paths: Sequence[Path], runs: Path) -> dict[Path, str]:
    """Each path below `runs`, or below a folder of that name; whole paths where two would be called the same."""
    short = {path: experiment_of(path, runs) for path in paths}
    return {path: name if list(short.values()).count(name) == 1 else str(path) for path, name in short.items()}


def _ancestors(stage: str, records: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The stages of the same run that a stage starts from, the farthest first."""
    found: list[str] = []
    for other, record in records.items():
        if stage in records and starts_from(stage, records[stage], other, record) and other not in found:
            found += [each for each in [*_ancestors(other, records), other] if each not in found]
    return found


def _cost(
    folder: Path, stages: Sequence[str], records: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Settings]
) -> Cost:
    seconds, steps, samples, tokens, flops, parameters, trained = 0.0, 0, 0, 0.0, 0.0, 0, 0
    for name in stages:
        record = records.get(name, {})
        facts = record.get("settings", {})
        table = facts.get("freeze_table", [])
        parameters = sum(row["parameters"] for row in table)
        trained = sum(row["parameters"] for row in table if row["trained"])
        own = int(record.get("steps", 0))
        batch = settings["" if name == folder.name else name].get("stage.global_batch")
        read = tokens_read(read_metrics(folder.parent / name / "metrics.csv"), own)
        seconds, steps = seconds + float(facts.get("seconds", 0.0)), steps + own
        samples = None if samples is None or not isinstance(batch, int) else samples + own * batch
        tokens = None if tokens is None or read is None else tokens + read
        flops = None if flops is None or read is None else flops + training_flops(read, parameters, trained)
    return Cost(
        seconds=seconds,
        steps=steps,
        samples=samples,
        tokens=tokens,
        parameters=parameters,
        trained=trained,
        flops=flops if flops and parameters else None,
    )


def tokens_read(metrics: Mapping[str, Sequence[tuple[float, float]]], steps: int) -> float | None:
    """Tokens of so many steps, from the rates and the times of the steps that were logged."""
    rates = dict(metrics.get("throughput/tokens_per_second", ()))
    times = dict(metrics.get("throughput/seconds_per_step", ()))
    logged = [rates[step] * times[step] for step in rates.keys() & times.keys()]
    return steps * sum(logged) / len(logged) if logged else None
