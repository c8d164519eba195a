"""Which reader a file of records needs."""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

from data_modules.containers.json_lines import JsonLines
from data_modules.containers.json_list import JsonList
from data_modules.containers.protocol import Cut, Records
from data_modules.containers.reading import look_at, not_found, regular
from data_modules.containers.tar import Tars

SUFFIXES = (".json", ".jsonl", ".ndjson", ".parquet", ".arrow", ".tar")
SAVED = ("state.json", "dataset_dict.json")
"""One of them is in a folder that `datasets` saved."""
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
FIRST_LINE = 1 << 20


def open_records(paths: str | Path | Sequence[str | Path], cut: Cut = "refuse") -> Records:
    """Records by number, in the order of the files.

    Args:
        paths: a file, a pattern (`shards/*.tar`, `shards/{00000..00331}.tar`) whose files are in the order of their
            names, or a list of them, all of one format: a JSON list, lines of JSON (also in a .json file), .parquet,
            a folder or an .arrow file of `datasets`, or webdataset tars.
        cut: what is done about a file whose end is missing, as in Cut.

    Raises:
        ValueError: a file is missing, is cut or damaged, or of another format.
    """
    if cut not in get_args(Cut):
        raise ValueError(f"cut: found {cut!r}, expected 'refuse' or 'use'")
    files = expanded([paths] if isinstance(paths, str | Path) else paths)
    readers = [_reader(path) for path in files]
    for path, reader in zip(files, readers, strict=True):
        if reader is not readers[0]:
            raise ValueError(f"{path}: found another format than that of {files[0]}, expected one for all")
    for path in files:
        for each in path.rglob("*") if path.is_dir() else [path]:
            look_at(each)
    return readers[0](files, cut)


def expanded(patterns: Sequence[str | Path]) -> list[Path]:
    """The files that names and patterns stand for.

    Raises:
        ValueError: a pattern stands for none, or there is none.
    """
    found = list[Path]()
    for pattern in map(str, patterns):
        named = _numbered(pattern)
        each = [path for name in named for path in ([name] if not glob.has_magic(name) else sorted(glob.glob(name)))]
        if not each or not os.path.lexists(each[0]):
            raise not_found(each[0] if each else pattern)
        found += map(Path, each)
    if not found:
        raise ValueError("found no file of records, expected at least one")
    return found


def _numbered(pattern: str) -> list[str]:
    """A name with {000..123} in it, once for each of the numbers."""
    if (braces := _BRACES.search(pattern)) is None:
        return [pattern]
    first, last = braces.groups()
    numbers = range(int(first), int(last) + 1)
    return [
        name
        for number in numbers
        for name in _numbered(f"{pattern[: braces.start()]}{number:0{len(first)}}{pattern[braces.end() :]}")
    ]


def bytes_of(patterns: Sequence[str | Path]) -> int:
    """The size of the files of records that names and patterns stand for; of others, and of none, 0."""
    total = 0
    for pattern in map(str, patterns):
        for path in map(Path, glob.glob(pattern) if glob.has_magic(pattern) else _numbered(pattern)):
            if path.is_file():
                total += path.stat().st_size
            elif any((path / name).is_file() for name in SAVED):
                total += sum(each.stat().st_size for each in path.iterdir() if each.is_file())
    return total


def _reader(path: Path) -> Callable[[Sequence[Path], Cut], Records]:
    suffix = path.suffix.lower()
    if path.is_dir() and not any((path / name).exists() for name in SAVED):
        raise ValueError(f"{path}: found a folder, expected files of records, or a folder that `datasets` saved")
    for each in path.rglob("*") if path.is_dir() else [path]:
        if not each.is_dir():
            regular(each)
    if path.is_dir() or suffix == ".arrow":
        return _dataset
    if suffix in (".jsonl", ".ndjson"):
        return JsonLines
    if suffix == ".json":
        return JsonLines if _has_lines(path) else JsonList
    if suffix == ".parquet":
        return _parquet
    if suffix == ".tar":
        return Tars
    packed = " (unpack it first: a compressed file cannot be read at any place)" if suffix in (".gz", ".tgz") else ""
    raise ValueError(f"{path}: found a '{suffix}' file{packed}, expected one of {', '.join(SUFFIXES)}")


def _has_lines(path: Path) -> bool:
    """Whether the first line of a .json file is an object of its own and another line follows."""
    with open(path, "rb") as file:
        line = file.readline(FIRST_LINE)
        try:
            return bool(file.read(1)) and isinstance(json.loads(line.decode("utf-8-sig")), dict)
        except (ValueError, RecursionError):
            return False


# pyarrow and what it needs are slow to import, and of no use to other files.
def _parquet(paths: Sequence[Path], cut: Cut) -> Records:
    from data_modules.containers.tables import Parquet

    return Parquet(paths, cut)


def _dataset(paths: Sequence[Path], cut: Cut) -> Records:
    from data_modules.containers.tables import Dataset

    return Dataset(paths, cut)
