"""Tables: .parquet files, read a row group at a time, and folders and .arrow files of `datasets`, mapped into memory.

Columns of pictures (bytes, or the {bytes, path} of `datasets`) are left out of a record, which gets their names in
place of them: "image" for the picture of the column `image`, "images/0", "images/1" for those of a list.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow
import pyarrow.parquet
from jaxtyping import Int

from data_modules.containers.damage import DAMAGED, damage, damage_of_rows, opened_parquet, reason
from data_modules.containers.offset_index import fingerprint, key_of
from data_modules.containers.protocol import Cut, FilesOfRecords
from data_modules.containers.reading import RecordError, not_found
from data_modules.shard_order import AT_ONCE
from lightning_mllm.contracts import ImageRef

HELD = 32 << 20
"""Bytes of row groups that a process keeps to read further rows of; at least the `AT_ONCE` that
`group: shard` reads at a time, of which most rows would otherwise be read anew."""
MOST_HELD = 512 << 20
"""Bytes of row groups that a process keeps in any case, but for the last one of each kind of columns."""
Stored = Literal[True] | str | list[Any] | None
"""What a column has of a picture: True for its bytes, else its path or nothing; a list of them of a list."""


def _is_bytes(kind: pyarrow.DataType) -> bool:
    return pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)


def is_picture(kind: pyarrow.DataType) -> bool:
    """Whether a column holds pictures, or lists of them."""
    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
        return is_picture(kind.value_type)
    if pyarrow.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _is_bytes(kind.field("bytes").type)
    return _is_bytes(kind)


@dataclass(frozen=True, eq=False)
class CellImage:
    """A picture in a table."""

    table: Tables
    index: int
    column: str
    number: int | None
    """In a list."""
    size: tuple[int, int] | None = None
    """As in ImageFile."""

    @property
    def name(self) -> str:
        place = f"{self.table.where(self.index)}: {self.column}"
        return place if self.number is None else f"{place}/{self.number}"

    def read(self, max_bytes: int) -> bytes:
        try:
            cell = self.table.cell(self.index, self.column)
        except RecordError as rule:
            raise ValueError(f"{self.name}: {rule}") from None
        if self.number is not None:
            assert isinstance(cell, list), "a number is one of a list"
            cell = cell[self.number]
        found = cell["bytes"] if isinstance(cell, dict) else cell
        assert isinstance(found, bytes), "`images` names those alone that have bytes"
        if len(found) > max_bytes:
            raise ValueError(f"{self.name}: found {len(found)} bytes, expected at most {max_bytes}")
        return found


class Tables(FilesOfRecords):
    """Rows of tables; the place of a record is "row 12", counted from 0."""

    schema: pyarrow.Schema

    def _place(self, file: int, number: int) -> str:
        return f"row {number}"

    @cached_property
    def _pictures(self) -> list[str]:
        return [field.name for field in self.schema if is_picture(field.type)]

    @cached_property
    def _columns(self) -> list[str]:
        return [name for name in self.schema.names if name not in self._pictures]

    @abstractmethod
    def _rows(self, index: int, columns: Sequence[str]) -> pyarrow.Table:
        """The columns of record `index`, in a table of one row."""

    def _sound(self, index: int, columns: Sequence[str]) -> pyarrow.Table:
        """As `_rows`. RecordError for a row that is damaged: pyarrow would read anywhere in memory, and end."""
        table = self._rows(index, columns)
        if not self._is_whole(index, columns) and (wrong := damage_of_rows(table)):
            raise RecordError(f"found a damaged row ({wrong}), expected a whole one")
        return table

    @abstractmethod
    def _is_whole(self, index: int, columns: Sequence[str]) -> bool:
        """Whether all rows beside record `index` are sound, which is looked at once; a row alone costs as much."""

    def cell(self, index: int, column: str) -> object:
        """What stands in a column of record `index`."""
        return self._sound(index, [column]).column(0)[0].as_py()

    def __getitem__(self, index: int) -> object:
        self._located(index)
        try:
            record = self._sound(index, self._columns).to_pylist()[0] if self._columns else {}
        except (UnicodeDecodeError, OverflowError) as error:
            raise RecordError(f"found a damaged row ({error}), expected a whole one") from None
        for column in self._pictures:
            record[column] = self._named(index, column)
        return {name: record[name] for name in self.schema.names}

    def _named(self, index: int, column: str) -> str | list[str] | None:
        """What a record says in place of its pictures: their names, or the path that is told in place of bytes."""
        shape = self._stored(index, column)
        if not isinstance(shape, list):
            return column if shape is True else shape
        return [f"{column}/{k}" if each is True else each or "" for k, each in enumerate(shape)]

    def _stored(self, index: int, column: str) -> Stored:
        """Of each picture True where there are bytes, else its path or None; no byte of it is copied."""

        def kind(cell: pyarrow.Scalar) -> Stored:
            if not cell.is_valid:
                return None
            if isinstance(cell, pyarrow.ListScalar | pyarrow.LargeListScalar):
                return [kind(each) for each in cell]
            if isinstance(cell, pyarrow.StructScalar):
                return True if cell["bytes"].is_valid else cell["path"].as_py() if "path" in cell else None
            return True

        return kind(self._sound(index, [column]).column(0)[0])

    def images(self, index: int) -> Mapping[str, ImageRef]:
        found: dict[str, ImageRef] = {}
        for column in self._pictures:
            stored = self._stored(index, column)
            for number, each in enumerate(stored) if isinstance(stored, list) else [(None, stored)]:
                if each is True:
                    name = column if number is None else f"{column}/{number}"
                    found[name] = CellImage(self, index, column, number)
        return found


class Parquet(Tables):
    """Rows of .parquet files.

    A cut file has lost the directory at its end, without which none of its rows can be read.

    Args:
        alike: whether all files must have the same columns.
    """

    def __init__(self, paths: Sequence[Path], cut: Cut = "refuse", alike: bool = True) -> None:
        super().__init__([], cut)
        self.schemas: list[pyarrow.Schema] = []
        """Of each file."""
        counts, groups, schema = list[int](), list[np.ndarray](), None
        for path in paths:
            try:
                with opened_parquet(path) as file:
                    meta, found = file.metadata, file.schema_arrow
                    names, _ = found.names, str(found)  # which reads the names of parts of columns, too
            except FileNotFoundError:
                raise not_found(path) from None
            except DAMAGED as error:
                sentence = f"{path}: found no table ({reason(error)}), expected a whole .parquet file"
                if cut == "refuse":
                    raise ValueError(sentence) from None
                self.left_out.append(f"{sentence}; it is left out")
                continue
            schema = schema or found
            if alike and names != schema.names:
                raise ValueError(
                    f"{path}: found the columns {', '.join(names)}, expected {', '.join(schema.names)} as in"
                    f" {self.paths[0]}"
                )
            if alike and (column := _otherwise(schema, found)):
                raise ValueError(
                    f"{path}: found '{column}' of type {found.field(column).type}, expected"
                    f" {schema.field(column).type} as in {self.paths[0]}"
                )
            self.paths.append(path)
            self.schemas.append(found)
            groups.append(np.array([meta.row_group(k).num_rows for k in range(meta.num_row_groups)], dtype=np.int64))
            counts.append(meta.num_rows)
        if schema is None:
            raise ValueError(self.left_out[0] if self.left_out else "found no file of records, expected at least one")
        self.schema = schema
        self.key = key_of("parquet", 1, [fingerprint(path) for path in self.paths])
        self._counted(counts)
        self._groups = [np.concatenate([[0], np.cumsum(each)]) for each in groups]
        """Of each file the number of the first row of each row group."""
        self._held: OrderedDict[tuple[int, int, tuple[str, ...]], pyarrow.Table] = OrderedDict()
        self._whole: dict[tuple[int, int, tuple[str, ...]], bool] = {}
        self._complete: dict[tuple[int, int, str], bool] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_held": OrderedDict()}

    def runs(self) -> Int[np.ndarray, " R"]:
        """Of each row group."""
        runs = np.concatenate([np.diff(each) for each in self._groups])
        return runs[runs > 0]

    def _stored(self, index: int, column: str) -> Stored:
        return True if self._always_stored(*self._group_of(index)[:2], column) else super()._stored(index, column)

    def _always_stored(self, file: int, group: int, column: str) -> bool:
        """Whether each row of a group has a picture, as far as the group's directory tells."""
        if (file, group, column) not in self._complete:
            try:
                with opened_parquet(self.paths[file]) as opened:
                    meta = opened.metadata.row_group(group)
                chunks = [meta.column(k) for k in range(meta.num_columns)]
                told = [each.statistics for each in chunks if each.path_in_schema in (column, f"{column}.bytes")]
                nulls = [each.null_count if each and each.has_null_count else 1 for each in told]
            except DAMAGED:
                nulls = []  # what is damaged is said where the rows are read
            self._complete[file, group, column] = nulls == [0]
        return self._complete[file, group, column]

    def groups(self, file: int) -> int:
        """How many row groups a file has."""
        return len(self._groups[file]) - 1

    def first_of(self, file: int, group: int) -> int:
        """The number in its file of the first row of a row group."""
        return int(self._groups[file][group])

    def _group_of(self, index: int) -> tuple[int, int, int]:
        """File, row group, and number in it of record `index`."""
        file, number = self._located(index)
        group = int(np.searchsorted(self._groups[file], number, side="right")) - 1
        return file, group, number - int(self._groups[file][group])

    def _rows(self, index: int, columns: Sequence[str]) -> pyarrow.Table:
        file, group, number = self._group_of(index)
        key = (file, group, tuple(columns))
        if (table := self._held.get(key)) is not None:
            self._held.move_to_end(key)
            return table.slice(number, 1)
        self._held[key] = table = self.group(file, group, columns)
        if key not in self._whole:
            self._whole[key] = not damage(table)
        self._drop()
        return table.slice(number, 1)

    def _is_whole(self, index: int, columns: Sequence[str]) -> bool:
        return self._whole[(*self._group_of(index)[:2], tuple(columns))]

    def _drop(self) -> None:
        """Row groups that were not read for the longest time, where too many are kept."""
        held = sum(each.nbytes for each in self._held.values())
        kinds = len({columns for _, _, columns in self._held})
        while len(self._held) > kinds and held > (HELD if len(self._held) > AT_ONCE * kinds else MOST_HELD):
            held -= self._held.popitem(last=False)[1].nbytes

    def group(self, file: int, group: int, columns: Sequence[str]) -> pyarrow.Table:
        """Some columns of a row group."""
        path = self.paths[file]
        try:
            with opened_parquet(path) as opened:
                return opened.read_row_group(group, list(columns), use_threads=False)
        except DAMAGED as error:
            sentence = f"{path}: row group {group}: cannot read it ({reason(error)}), expected a whole table"
            raise ValueError(sentence) from None


def _otherwise(one: pyarrow.Schema, other: pyarrow.Schema) -> str:
    """A column that holds pictures in one table alone, or nothing; an empty column is like any."""
    return next(
        (
            each.name
            for each in other
            if is_picture(each.type) != is_picture(one.field(each.name).type) and not pyarrow.types.is_null(each.type)
        ),
        "",
    )


class Dataset(Tables):
    """A folder that `datasets` saved (`save_to_disk`), or an .arrow file of its cache; one of them.

    Raises:
        ValueError: it cannot be read, or is a folder of several splits.
    """

    def __init__(self, paths: Sequence[Path], cut: Cut = "refuse") -> None:
        super().__init__(paths, cut)
        import datasets  # slow to import, and of no use to other files

        path = self.paths[0]
        if len(paths) > 1:
            raise ValueError(f"{path}: found {len(paths)} folders of datasets, expected one")
        if (path / "dataset_dict.json").exists():
            splits = sorted(each.name for each in path.iterdir() if each.is_dir())
            raise ValueError(f"{path}: found the splits {', '.join(splits)}, expected one of them: {path / splits[0]}")
        try:
            read = datasets.Dataset.load_from_disk if path.is_dir() else datasets.Dataset.from_file
            table: datasets.Dataset = read(str(path))
        except DAMAGED as error:
            raise ValueError(
                f"{path}: found no dataset ({reason(error)}), expected one that `datasets` saved"
            ) from None
        self._table = table.with_format("arrow")
        self.schema = table.data.schema
        files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
        self.key = key_of("dataset", 1, [fingerprint(each) for each in files])
        self._counted([len(table)])
        sizes = [batch.num_rows for batch in table.data.table.to_batches()]
        self._batches = np.cumsum([0, *sizes], dtype=np.int64)
        """The number of the first row of each batch."""
        self._whole: dict[tuple[int, tuple[str, ...]], bool] = {}

    def _is_whole(self, index: int, columns: Sequence[str]) -> bool:
        if self._table._indices is not None:
            return False  # rows are in another order than they are stored
        batch = int(np.searchsorted(self._batches, index, side="right")) - 1
        key = batch, tuple(columns)
        if key not in self._whole:
            begin, end = self._batches[batch : batch + 2].tolist()
            self._whole[key] = not damage(self._table.data.table.select(list(columns)).slice(begin, end - begin))
        return self._whole[key]

    def _rows(self, index: int, columns: Sequence[str]) -> pyarrow.Table:
        rows: Any = self._table[index : index + 1]
        return rows.select(list(columns))

    def runs(self) -> Int[np.ndarray, " R"]:
        """Every row costs the same."""
        return np.ones(len(self), dtype=np.int64)
