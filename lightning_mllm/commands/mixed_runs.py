"""Weights between those of runs, written as a run of its own.

DIR/weights/model.safetensors   every tensor that the sources have, mixed
DIR/weights/stage.json          what it was mixed from, with digests
DIR/config.yaml                 that of the first run

Of folders and files that are no runs of ours the mix is such a folder: tensors under their own names, the other files
of the first folder beside them, and `mix.json`.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lightning_mllm.commands.signatures import import_class
from lightning_mllm.export.export import refuse_full
from lightning_mllm.inference import stage_of
from lightning_mllm.interop.format import key_maps
from lightning_mllm.weights.files import BESIDE, INDEXES, PICKLES, TensorFiles, write_in_pieces, write_text
from lightning_mllm.weights.folder_beside import folder_beside
from lightning_mllm.weights.keymap import KeyMap
from lightning_mllm.weights.lineage import RECORD, WEIGHTS, InitSource, Lineage
from lightning_mllm.weights.mixing import Mixture, coefficients
from lightning_mllm.weights.run_records import read_config
from lightning_mllm.weights.stage_weights import mixture, tensors_of, write_record


def find(name: str, runs: Path) -> InitSource:
    """The stage, folder or file called `name`, below `runs` or at a path; of a run with stages the last one.

    Raises:
        ValueError: There is none.
    """
    for run in (runs / name, Path(name)):
        if not (run / WEIGHTS / RECORD).is_file() and any(run.glob(f"*/{WEIGHTS}/{RECORD}")):
            name = str(stage_of(run).resolve())
            break
    try:
        return InitSource.find(name, runs)
    except ValueError as error:
        raise ValueError(f"mix: {str(error).removeprefix('init_from: ')}") from None


def folder_of(source: InitSource) -> Path:
    """The run folder of a stage; the folder or file that is none."""
    return (source.path if source.record is None else source.path.parent).resolve()


def called(source: InitSource, runs: Path) -> str:
    """How a record calls a source: its path below `runs`, elsewhere its own path."""
    root = runs.resolve()
    return str(folder_of(source).relative_to(root) if folder_of(source).is_relative_to(root) else folder_of(source))


def net_of(sources: Sequence[InitSource]) -> tuple[dict[str, Any], Mapping[str, KeyMap]]:
    """The configuration of the first run, and the tables by which its net renames foreign weights.

    Raises:
        ValueError: A run has no configuration, or another architecture than the first.
    """
    found: list[tuple[Path, dict[str, Any]]] = []
    for each in sources:
        if each.record is not None:
            file = each.path.parent / "config.yaml"
            if not file.is_file():
                raise ValueError(f"{file}: found no configuration, expected that of a run that mllm trained")
            found.append((file, read_config(file, needs=("model", "stage"))))
    (first, settings), *others = found
    name = settings["model"]["class_path"]
    for file, other in others:
        if (wrong := other["model"]["class_path"]) != name:
            raise ValueError(f"{file}: found the architecture {wrong}, expected {name} as in {first}")
    net: Any = import_class(name, f"{first}: model")
    return settings, key_maps(net, {})


def mixed(sources: Mapping[str, InitSource], weights: Mapping[str, float], runs: Path) -> Mixture:
    """The tensors of runs, and of what else their net reads, by their weights.

    Raises:
        ValueError: Sources changed since they were used, have adapters, or differ in names or shapes.
    """
    _, tables = net_of(list(sources.values()))
    found = mixture({name: tensors_of(each, runs, tables) for name, each in sources.items()}, weights)
    found.layout()
    return found


def write_mix(weights: Mapping[str, float], to: Path, *, base: str | None = None, runs: Path = Path("runs")) -> Path:
    """Writes the mix of `weights`, or of what they add to `base`.

    Args:
        weights: A run, a stage, a folder or a file -> its weight; without a base from 0 to 1 and together 1.
        to: An empty or absent folder.
        base: What the others' differences are taken from.
        runs: What names are relative to.

    Raises:
        ValueError: The weights are out of range, a source is missing or changed, sources differ in names or shapes, or
            `to` is not empty.
        OSError: The disk is full or the folder cannot be written.
    """
    refuse_full(to)
    given = coefficients(weights, base, where="mix")
    sources: dict[str, InitSource] = {}
    shares: dict[str, float] = {}
    for name, weight in given.items():
        source = find(name, runs)
        key = called(source, runs)
        if key in sources:
            raise ValueError(f"mix: found {key!r} a second time as {name!r}, expected different sources")
        sources[key], shares[key] = source, weight
    write = _write_run if any(each.record is not None for each in sources.values()) else _write_folder
    with folder_beside(to) as beside:
        folder = Path(beside, to.name)
        folder.mkdir()
        write(folder, to, sources, shares, runs)
        if to.is_dir():
            to.rmdir()
        shutil.move(folder, to)
    return to


def _write_run(
    folder: Path, to: Path, sources: Mapping[str, InitSource], weights: Mapping[str, float], runs: Path
) -> None:
    started = time.perf_counter()
    lineage = Lineage.read(weights, runs)
    tensors = mixed(sources, weights, runs)
    write_in_pieces(folder / WEIGHTS / "model.safetensors", tensors.layout(), tensors.pieces)
    settings, _ = net_of(list(sources.values()))
    settings["run_dir"], settings["stage"]["init_from"] = str(to), dict(weights)
    write_text(folder / "config.yaml", yaml.safe_dump(settings, sort_keys=False))
    stage = next(each.stage for each in sources.values() if each.stage is not None)
    facts = {"stage": stage, "steps": 0, "init_from": dict(weights), "lora_scale": None, "whole": True}
    told = {"config": {"mix": dict(weights)}, "freeze_table": [], "seconds": time.perf_counter() - started}
    write_record(folder / WEIGHTS, lineage, names=tensors, settings=told, **facts)


def _write_folder(
    folder: Path, to: Path, sources: Mapping[str, InitSource], weights: Mapping[str, float], runs: Path
) -> None:
    paths = {name: each.path for name, each in sources.items()}
    parts: dict[str, Callable[[Path], Path]] = {"model.safetensors": lambda path: path}
    if any((path / BESIDE).is_file() for path in paths.values()):
        parts[BESIDE] = lambda path: path / BESIDE
    mixes = {
        file: Mixture({name: TensorFiles(inside(path)) for name, path in paths.items()}, weights)
        for file, inside in parts.items()
    }
    layouts = {file: tensors.layout() for file, tensors in mixes.items()}
    for file, tensors in mixes.items():
        write_in_pieces(folder / file, layouts[file], tensors.pieces)
    first = next(iter(paths.values()))
    for other in sorted(first.iterdir()) if first.is_dir() else ():
        if other.is_file() and other.suffix not in (".safetensors", *PICKLES) and other.name not in INDEXES:
            shutil.copyfile(other, folder / other.name)
    lineage = [{"source": name, "sha256": each.digest} for name, each in sources.items()]
    write_text(folder / "mix.json", json.dumps({"mix": dict(weights), "lineage": lineage}, indent=2) + "\n")
