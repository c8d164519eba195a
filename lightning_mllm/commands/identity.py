"""What a stage was begun with, beside its settings: `identity.json` in the run folder, asked when it goes on.

{"format": 1,
 "files":     {"data.train.captions.annotations": {"digest", "paths", "stamps"}, "model.language.model": ...},
 "folders":   {"data.train.captions.images": {"share", "whole", "files"}},        fingerprints.py
 "samples":   {"data.train.captions": {"count", "digests"}},                      some of them, as the source gives them
 "processor": {"tokenizer", "chat template", "images", "encoded", ...},
 "ancestors": {"align": "9f86d0..."},                                             SHA-256 of the weights it began from
 "precision": {"trainer": "32-true", "hardware": "fp32"},
 "drift":     [{"names": ["data.train.captions.images"], "found": "..."}]}           what `--allow-drift` let pass

Files and folders are those that the settings of the model and of the data name; a data set that was moved has the same
digests, so that its new path is no change. Of each source 1,000 samples are looked at, spread evenly. A finished stage
is asked about its files alone, and of those that nobody touched since (size and time of change) not their content; a
stopped one about everything. What a source reads that no setting names is known by those samples only.

Ranks and micro-batches, and where things are kept, belong to no identity.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch

from lightning_mllm.commands.config import ConfigError
from lightning_mllm.commands.fingerprints import (
    changed_files,
    files_at,
    files_of_model,
    folder_at,
    of_files,
    of_folder,
    stamps,
)
from lightning_mllm.contracts import Sample
from lightning_mllm.evaluation.results import write_json
from lightning_mllm.processing.fingerprint import are_encoded_alike, encoded_digest, processor_digests
from lightning_mllm.weights.lineage import InitSource
from lightning_mllm.weights.run_records import read_record

IDENTITY, FORMAT = "identity.json", 1
LOOKED_AT, ENCODED = 1_000, 8
"""Samples of a source that are looked at, and those of them that are encoded."""
NO_PATHS = ("prompt", "task", "chat", "name", "split", "part", "kind", "group", "stage", "class_path")
"""Settings that may be called like a folder and name none."""
Tree = Mapping[str, object]


@runtime_checkable
class HasSamples(Protocol):
    """A data module whose training samples can be looked at."""

    @property
    def train(self) -> Mapping[str, object]: ...

    def load_training(self) -> None: ...

    def training_sample(self, name: str, index: int) -> tuple[Sample, torch.Generator]: ...


def named_paths(recipe: Tree) -> Iterator[tuple[str, list[str]]]:
    """The settings of data and model that name files or folders: dotted key without `init_args`, and what it says."""
    for name in ("data", "model"):
        yield from _named_paths(recipe.get(name), name)


def _named_paths(value: object, key: str) -> Iterator[tuple[str, list[str]]]:
    last = key.rpartition(".")[2]
    if isinstance(value, Mapping):
        for name, each in value.items():
            yield from _named_paths(each, key if name == "init_args" else f"{key}.{name}")
    elif last not in NO_PATHS:
        texts = [value] if isinstance(value, str) else value if isinstance(value, list) else []
        if texts and all(isinstance(each, str) for each in texts):
            yield key, [str(each) for each in texts]


def files_of(recipe: Tree) -> dict[str, list[Path]]:
    """The files that settings name, and those in the folders of models."""
    found: dict[str, list[Path]] = {}
    for key, texts in named_paths(recipe):
        paths = [path for text in texts for path in files_at(text)]
        if key.startswith("model.") and (folder := folder_at(texts[0])):
            paths += files_of_model(folder)
        if paths:
            found[key] = paths
    return found


def folders_of(recipe: Tree) -> dict[str, Path]:
    """The folders that the data's settings name."""
    found = ((key, folder_at(text)) for key, texts in named_paths(recipe) for text in texts if key.startswith("data."))
    return {key: folder for key, folder in found if folder is not None}


def changed_files_of(run_dir: Path, recipe: Tree) -> tuple[dict[str, str], set[str]]:
    """Of a run's settings that name files: those whose content changed, with what was found; and those that hold what
    they held, wherever that is now."""
    known = read_identity(run_dir).get("files", {})
    changed, same = {}, set[str]()
    for key, paths in files_of(recipe).items():
        if (before := known.get(key)) is None:
            continue
        untouched = before["paths"] == [str(each.resolve()) for each in paths] and before["stamps"] == stamps(paths)
        if untouched or before["digest"] == of_files(paths):
            same.add(key)
        else:
            changed[key] = f"another content of {paths[0]}" if len(paths) == 1 else "another content"
    return changed, same


def moved_folders(run_dir: Path, recipe: Tree, keys: Sequence[str]) -> set[str]:
    """Those of the keys that name a folder with the files that the run began with."""
    known, folders = read_identity(run_dir).get("folders", {}), folders_of(recipe)
    return {
        key
        for key in keys
        if key in known and key in folders and not changed_files(known[key], of_folder(folders[key], known[key]))
    }


def identity_of(
    recipe: Tree,
    datamodule: object,
    processor: object,
    init_from: Mapping[str, float],
    runs: Path,
    begun_in: Path | None,
    *,
    precision: Mapping[str, str],
) -> dict[str, object]:
    """What a stage is begun with.

    Args:
        begun_in: The run folder that it goes on from, whose folders of data are looked at in the same way.
    """
    known = read_identity(begun_in).get("folders", {}) if begun_in is not None else {}
    folders, seen = {}, dict[tuple[Path, bool], dict[str, object]]()
    for key, folder in folders_of(recipe).items():
        looked = (folder.resolve(), key in known)
        folders[key] = seen[looked] = seen.get(looked) or of_folder(folder, known.get(key))
    files = {
        key: {"digest": of_files(paths), "paths": [str(each.resolve()) for each in paths], "stamps": stamps(paths)}
        for key, paths in files_of(recipe).items()
    }
    samples, shown = _samples(datamodule)
    return {
        "format": FORMAT,
        "files": files,
        "folders": folders,
        "samples": samples,
        "processor": {**processor_digests(processor), "encoded": encoded_digest(processor, shown)},
        "ancestors": {source: _digest_of(InitSource.find(source, runs)) for source in init_from},
        "precision": dict(precision),
    }


def _digest_of(source: InitSource) -> str:
    """What a stage of ours says of its weights, which are read, and compared with that, when the net is filled."""
    return source.digest if source.record is None else str(source.record["sha256"])


def _samples(datamodule: object) -> tuple[dict[str, object], list[tuple[Sample, torch.Generator]]]:
    """Digests of some samples of each source, and a few of the samples."""
    found: dict[str, object] = {}
    shown: list[tuple[Sample, torch.Generator]] = []
    if not isinstance(datamodule, HasSamples):
        return found, shown
    datamodule.load_training()
    for name, source in datamodule.train.items():
        count = len(source)  # pyright: ignore[reportArgumentType]
        digests = list[str]()
        for index in looked_at(count):
            try:
                sample, generator = datamodule.training_sample(name, index)
            except Exception:  # told when it is trained on, if it is, with its name; or replaced
                digests.append("")
                continue
            digests.append(_digest(sample))
            if len(digests) <= ENCODED:
                shown.append((sample, generator))
        found[f"data.train.{name}"] = {"count": count, "digests": digests}
    return found, shown


def looked_at(count: int) -> list[int]:
    """The numbers of the samples that are looked at."""
    most = min(count, LOOKED_AT)
    return [index * count // most for index in range(most)]


def _digest(sample: Sample) -> str:
    written = repr((sample.turns, sample.documents, len(sample.images), sample.references, sample.candidates))
    return hashlib.blake2b(written.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()


def drift(known: Tree, now: Tree) -> dict[str, str]:
    """Name of what differs between two identities -> what was found, in words; what only one of them has is left out:
    settings tell of that."""
    found = dict[str, str]()
    for key, before, after in _both(known, now, "files"):
        if before["digest"] != after["digest"]:
            found[key] = "another content"
    for key, before, after in _both(known, now, "folders"):
        if changed := changed_files(before, after):
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            found[key] = f"another {changed[0]}{more}"
    for key, before, after in _both(known, now, "samples"):
        if told := _changed_samples(before, after):
            found[key] = told
    for part, before, after in _both(known, now, "processor"):
        if not (are_encoded_alike(str(before), str(after)) if part == "encoded" else before == after):
            found[f"processor.{part}"] = "another"
    for source, before, after in _both(known, now, "ancestors"):
        if before != after:
            found[f"stage.init_from.{source}"] = "other weights"
    for name, before, after in _both(known, now, "precision"):
        if before != after:
            found[f"precision.{name}"] = f"{after} and not {before}"
    return found


def _both(known: Tree, now: Tree, name: str) -> Iterator[tuple[str, dict, dict]]:
    before, after = known.get(name), now.get(name)
    assert isinstance(before, Mapping) and isinstance(after, Mapping)
    return ((str(key), before[key], after[key]) for key in before if key in after)


def _changed_samples(before: Tree, after: Tree) -> str:
    counts, digests = (before["count"], after["count"]), (before["digests"], after["digests"])
    old, new = digests
    assert isinstance(old, list) and isinstance(new, list) and isinstance(counts[1], int)
    if counts[0] != counts[1]:
        return f"{counts[1]} samples and not {counts[0]}"
    odd = [number for number, pair in enumerate(zip(old, new, strict=True)) if pair[0] != pair[1]]
    if not odd:
        return ""
    if sorted(old) == sorted(new):
        return f"another order of samples from {looked_at(counts[1])[odd[0]]} on"
    return f"another sample {looked_at(counts[1])[odd[0]]}" + (f" and {len(odd) - 1} more" if len(odd) > 1 else "")


def read_identity(run_dir: Path) -> dict:
    """What the run was begun with; nothing where an older version began it.

    Raises:
        ConfigError: The file is damaged.
    """
    found = read_record(run_dir / IDENTITY, "move it away to go on without comparing the data, or say --overwrite")
    parts = ("files", "folders", "samples", "processor", "ancestors", "precision")
    if found and (found.get("format") != FORMAT or not all(isinstance(found.get(part), dict) for part in parts)):
        raise ConfigError(
            f"{run_dir / IDENTITY}: found another format, expected {', '.join(parts)}; move it away to go on without"
            " comparing the data, or say --overwrite"
        )
    return found


def is_allowed(name: str, allowed: Sequence[str]) -> bool:
    """Whether `--allow-drift` lets a difference pass: by its name, or by the beginning of it, up to a dot."""
    return any(name == each or name.startswith(f"{each}.") for each in allowed)


def check_identity(
    run_dir: Path, now: Tree, *, begun_in: Path | None, settings: Sequence[str], allowed: Sequence[str]
) -> list[str]:
    """Compares a stage that goes on with what it was begun with, and writes `identity.json`.

    Args:
        begun_in: The run folder that it goes on from; None where it begins.
        settings: The settings that differ and were allowed.
        allowed: Names of differences that it goes on with.

    Returns:
        Sentences to be told.

    Raises:
        ConfigError: It differs, in something that is not allowed.
    """
    known = {} if begun_in is None else read_identity(begun_in)
    told, passed = [], list(known.get("drift", []))
    if begun_in is not None and not known:
        told.append(f"{run_dir}: found no {IDENTITY}, so whether the data are the same was not looked at")
    found = drift(known, now) if known else {}
    refuse(run_dir, {name: what for name, what in found.items() if not is_allowed(name, allowed)})
    found = {**dict.fromkeys([name for name in settings if is_allowed(name, allowed)], ""), **found}
    if found:
        passed.append({"names": sorted(found), "found": in_words(found)})
        told.append(f"{run_dir} goes on with another {in_words(found)}, as --allow-drift says; {IDENTITY} records it")
    write_json(run_dir / IDENTITY, {**now, "drift": passed})
    return told


def refuse(run_dir: Path, found: Mapping[str, str], done: bool = False) -> None:
    """Raises ConfigError where something differs."""
    if found:
        first = next(iter(found))
        raise ConfigError(
            f"{run_dir}: found {in_words(found)}, expected what its {'weights were' if done else 'training was'} begun"
            f" with; put that back, name another --run_dir, say --overwrite to train anew, or --allow-drift {first} to"
            " go on, which is recorded"
        )


def in_words(found: Mapping[str, str]) -> str:
    """The differences, five of them at most."""
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    return ", ".join([f"{name} ({what})" if what else name for name, what in found.items()][:5]) + more
