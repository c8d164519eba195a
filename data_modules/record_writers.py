"""Files of records, written one record after another beside their place, and renamed when they are whole."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from data_modules.containers.tables import is_picture
from data_modules.containers.values import Record

GROUP = 256
"""Rows of a row group at most."""
GROUP_BYTES = 32 << 20
"""Bytes of pictures in a row group at most, and one picture more: so that a reader keeps several row groups."""


class Writer(ABC):
    """Writes records into `path`.

    Args:
        path: the file, opened where it is written beside.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def add(self, record: Record, beside: Mapping[str, bytes]) -> None:
        """Writes a record.

        Args:
            beside: pictures that are stored with it, by name.
        """

    @abstractmethod
    def close(self) -> None: ...


class JsonWriter(Writer):
    """A JSON list, a record a line; or lines alone."""

    def __init__(self, path: Path, *, lines: bool) -> None:
        super().__init__(path)
        self.lines, self.count = lines, 0
        self.file = io.TextIOWrapper(io.BufferedWriter(io.FileIO(path, "w")), encoding="utf-8", newline="\n")
        self.file.write("" if lines else "[")

    def add(self, record: Record, beside: Mapping[str, bytes]) -> None:
        assert not beside, "a file of JSON has no place for pictures"
        self.file.write("" if self.lines else ",\n" if self.count else "\n")
        self.file.write(json.dumps(record, ensure_ascii=False, allow_nan=False))
        self.file.write("\n" if self.lines else "")
        self.count += 1

    def close(self) -> None:
        self.file.write("" if self.lines else "\n]\n")
        self.file.close()


class TarWriter(Writer):
    """A webdataset tar: KEY.json, and the pictures beside it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.count, self.tar = 0, tarfile.TarFile(path, "w", format=tarfile.PAX_FORMAT)

    def add(self, record: Record, beside: Mapping[str, bytes]) -> None:
        self._member(f"{key_of(self.count)}.json", json.dumps(record, ensure_ascii=False, allow_nan=False).encode())
        for name, data in beside.items():
            self._member(name, data)
        self.count += 1

    def _member(self, name: str, data: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        self.tar.addfile(member, io.BytesIO(data))

    def close(self) -> None:
        self.tar.close()


class ParquetWriter(Writer):
    """A table, some rows a row group.

    Args:
        schema: of all records (`Columns`).
    """

    def __init__(self, path: Path, schema: pyarrow.Schema) -> None:
        super().__init__(path)
        self.schema, self.rows, self.bytes = with_features(schema), list[Record](), 0
        self.file = pyarrow.parquet.ParquetWriter(path, self.schema)

    def add(self, record: Record, beside: Mapping[str, bytes]) -> None:
        assert not beside, "a table holds its pictures in columns"
        self.rows.append(record)
        self.bytes += sum(len(each["bytes"]) for each in _pictures(record) if each["bytes"])
        if len(self.rows) == GROUP or self.bytes > GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self.rows:
            self.file.write_table(pyarrow.Table.from_pylist(self.rows, self.schema))
        self.rows, self.bytes = [], 0

    def close(self) -> None:
        self._flush()
        self.file.close()


def _pictures(record: Record) -> Iterator[Mapping[str, Any]]:
    for key in ("image", "images"):
        value = record.get(key)
        yield from (each for each in (value if isinstance(value, list) else [value]) if isinstance(each, dict))


class Columns:
    """The columns that records need, found by looking at all of them, some at a time."""

    def __init__(self) -> None:
        self.types: dict[str, pyarrow.DataType] = {}
        self.mixed: dict[str, str] = {}
        """Columns whose values have no one type, and why."""
        self._rows: list[Record] = []

    def add(self, record: Record) -> None:
        self._rows.append(record)
        if len(self._rows) == GROUP:
            self._look()

    def _look(self) -> None:
        rows, self._rows = self._rows, []
        for name in dict.fromkeys(name for row in rows for name in row):
            if name in self.mixed:
                continue
            try:
                found = pyarrow.array([row.get(name) for row in rows]).type
                both = [pyarrow.schema([(name, each)]) for each in (self.types.get(name, found), found)]
                self.types[name] = pyarrow.unify_schemas(both, promote_options="permissive").field(0).type
            except (pyarrow.ArrowException, OverflowError) as error:
                self.mixed[name] = str(error).splitlines()[0]

    def add_texts(self, name: str) -> None:
        """Makes a column of mixed values one of texts."""
        del self.mixed[name]
        self.types[name] = pyarrow.string()

    @property
    def schema(self) -> pyarrow.Schema:
        """Of the columns that have one type."""
        self._look()
        for name, kind in self.types.items():
            if _is_empty(kind):
                self.mixed.setdefault(name, "it is an object without keys")
        return pyarrow.schema([(name, kind) for name, kind in self.types.items() if name not in self.mixed])


def _is_empty(kind: pyarrow.DataType) -> bool:
    """Whether a struct without fields is in it, which parquet cannot hold."""
    if pyarrow.types.is_struct(kind):
        return not kind.num_fields or any(_is_empty(kind.field(k).type) for k in range(kind.num_fields))
    return bool(pyarrow.types.is_list(kind)) and _is_empty(kind.value_type)


def with_features(schema: pyarrow.Schema) -> pyarrow.Schema:
    """The columns, with a note by which `datasets` shows pictures as such."""
    pictures = [field.name for field in schema if is_picture(field.type)]
    if not pictures:
        return schema
    from datasets import Features, Image, List

    features = Features.from_arrow_schema(schema)
    for name in pictures:
        features[name] = List(Image()) if pyarrow.types.is_list(schema.field(name).type) else Image()
    return features.arrow_schema


def key_of(number: int) -> str:
    """The key of a record in a tar, and the beginning of its pictures' names."""
    return f"{number:09}"


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """Where to write a file or a folder, which gets its name when that is done, and is removed when it fails.

    Raises:
        ValueError: there is one already, or no folder to write it in.
    """
    if path.exists():
        raise ValueError(f"{path} exists, expected a name that is free")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{path.parent}: cannot write there ({error.strerror})") from None
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield beside
        if beside.exists():
            beside.rename(path)
    finally:
        if beside.is_dir():
            shutil.rmtree(beside)
        else:
            beside.unlink(missing_ok=True)
