"""Reading data files so that whatever is wrong with one is said in a sentence: file, record, found, expected."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_modules.containers.reading import WORLDS as WORLDS
from data_modules.containers.reading import RecordError as RecordError
from data_modules.containers.reading import located as located
from data_modules.containers.reading import look_at, regular
from data_modules.containers.reading import not_found as not_found
from data_modules.containers.reading import parse as parse
from data_modules.containers.values import MAX_TEXT as MAX_TEXT
from data_modules.containers.values import Record as Record
from data_modules.containers.values import field as field
from data_modules.containers.values import kind_of as kind_of
from data_modules.containers.values import one_of as one_of
from data_modules.containers.values import text_of as text_of
from data_modules.containers.values import texts_of as texts_of
from data_modules.sources.image_folder import ImageFolder as ImageFolder

MAX_FILE = 1 << 33
"""Bytes of a file of annotations that is read whole; the largest published one (Visual Genome's regions) has 0.7 GB."""
MAX_CAPTION = 10_000
"""Characters; the longest caption of the published sets has a few hundred."""


def refused(path: str | Path, place: str, record: object, rule: object, key: str = "id") -> ValueError:
    """The error that names the file, the record's place and id, and the rule.

    Args:
        place: ":12" for a line, "record 12" or "annotations[12]" for an entry of a list, counted from 0.
        key: under which name the record keeps its id.
    """
    if record is None and isinstance(rule, RecordError):
        record = rule.record
    id = record.get(key) if isinstance(record, dict) else None
    sentence = f"{located(path, place)}{'' if id is None else f' ({key} {str(id)[:200]})'}: {rule}"
    return ValueError(sentence.encode("utf-8", "backslashreplace").decode())  # half of a character cannot be printed


def unique_id(id: str, known: dict[str, int]) -> str:
    """`id`, or `id#2`, `id#3`, ...: the first that is not known yet.

    Args:
        known: every id given out so far, with how often it was asked for; the new one is added.
    """
    unique = id
    while unique in known:
        known[id] += 1
        unique = f"{id}#{known[id]}"
    known[unique] = 1
    return unique


def read_bytes(path: str | Path) -> bytes:
    """The bytes of a data file; ValueError if it is missing or cannot be read."""
    look_at(path)
    if (size := regular(path).st_size) > MAX_FILE:
        raise ValueError(f"{path}: found {size} bytes, expected at most {MAX_FILE} of a file that is read whole")
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot read the file ({error.strerror})") from None


def read_json(path: str | Path) -> object:
    """The value in a JSON file; ValueError names the file and what is wrong."""
    try:
        return parse(read_bytes(path), halves=True)
    except RecordError as error:
        raise ValueError(f"{path}: {error}") from None


def list_in(path: str | Path, content: object, name: str) -> list[Any]:
    """`content[name]`, which must be a list; ValueError names the file `path` that holds it."""
    if not isinstance(content, dict):
        raise ValueError(f"{path}: found {kind_of(content)}, expected an object with the list '{name}'")
    if not isinstance(content.get(name), list):
        keys = ", ".join(f"'{key}'" for key in list(content)[:6])
        raise ValueError(f"{path}: found the keys {keys or 'of nothing'}, expected the list '{name}'")
    return content[name]


def lines(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """Number (from 1) and bytes of each line of a file that is not blank."""
    for number, line in enumerate(read_bytes(path).split(b"\n"), 1):
        if line.strip():
            yield number, line


def records_in(path: str | Path, name: str = "") -> Iterator[tuple[str, object]]:
    """Index of each record, and the record: of .jsonl lines the bytes, of other JSON the values of a list.

    Args:
        name: the key of the list; empty where the file is the list.
    """
    if str(path).endswith(".jsonl"):
        yield from ((f":{number}", line) for number, line in lines(path))
        return
    content = read_json(path)
    if name:
        content = list_in(path, content, name)
    elif not isinstance(content, list):
        raise ValueError(
            f"{path}: found {kind_of(content)}, expected a list of records (lines belong in a .jsonl file)"
        )
    yield from ((f"{name}[{index}]" if name else f"record {index}", each) for index, each in enumerate(content))


def keyed_records_in(path: str | Path, key: str) -> Iterator[tuple[str, object]]:
    """Index of each record of an object {id: record}, and the record with its id under `key`."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: found {kind_of(content)}, expected an object of records by id")
    for id, record in content.items():
        yield f"record '{id}'", {**record, key: id} if isinstance(record, dict) else record


def packed(value: object) -> bytes:
    """What `Packed` keeps of a JSON value; UnicodeEncodeError for a text with half of a surrogate pair."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


class Packed:
    """A list of `packed` JSON values in one block of bytes.

    Forked loader workers share it; a list of objects would be copied page by page as their reference counts change.
    """

    def __init__(self, block: np.ndarray, ends: np.ndarray) -> None:
        self._block, self._ends = block, ends

    @classmethod
    def of(cls, values: Iterable[bytes]) -> Packed:
        block, ends = bytearray(), array("q")
        for value in values:
            block += value
            ends.append(len(block))
        return cls(np.frombuffer(block, dtype=np.uint8), np.array(ends, dtype=np.int64))

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """What it is made of, under a name."""
        return {name: self._block, f"{name}_ends": self._ends}

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        begin = int(self._ends[index - 1]) if index else 0
        return json.loads(self._block[begin : int(self._ends[index])].tobytes())
