"""Plain text in tables, which are read where they lie."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from data_modules.containers.offset_index import Arrays, built, key_of, texts, texts_in
from data_modules.sources.files import BadRecords
from data_modules.sources.plain_text import TextSource

KEPT_FROM = 64
"""Row groups, above which the sizes of their texts are kept for the next process."""


class Group(NamedTuple):
    """A row group of a file."""

    file: int
    number: int


class TextTable(TextSource):
    """A column of .parquet files, as RefinedWeb is published (arXiv 2306.01116: the column `content`).

    A text is read from its row group, the last ones of which are kept; nothing is unpacked to disk. The sizes of all
    texts are found once on a machine (data_modules/containers/offset_index.py).

    Args:
        files: as in TextSource.
        field: the name of the column.
        bad_records: 'refuse' or 'skip' (rows without text, files that are cut off), as in FileSource.
    """

    def __init__(self, files: str | list[str], field: str = "content", bad_records: BadRecords = "refuse") -> None:
        super().__init__(files, bad_records)
        self.field = field
        self._table: Any = None
        self._rows: Int[np.ndarray, " N"] = np.zeros(0, dtype=np.int64)

    def _index(self) -> None:
        # Slow to import, and of no use to other sources.
        import pyarrow

        from data_modules.containers.tables import Parquet

        self._table = table = Parquet(self.paths, "use" if self.bad_records == "skip" else "refuse", alike=False)
        self.skipped += table.left_out
        for path, schema in zip(table.paths, table.schemas, strict=True):
            kind = schema.field(self.field).type if self.field in schema.names else None
            if kind not in (pyarrow.string(), pyarrow.large_string()):
                found = f"the columns {', '.join(schema.names)}" if kind is None else f"'{self.field}' of type {kind}"
                raise ValueError(f"{path}: found {found}, expected texts in '{self.field}'")
        groups = [Group(file, k) for file in range(len(table.paths)) for k in range(table.groups(file))]
        key = key_of("texts", 1, self.field, self.bad_records, table.key)
        found = built(key, groups, self._sizes_in, kept=len(groups) >= KEPT_FROM)
        self.skipped += texts_in(found["skipped"]) if groups else []
        sizes = found["size"] if groups else np.zeros(0, dtype=np.int64)
        # Where every row has text, as it should be, no list of rows is needed.
        if groups and found["empty"].any():
            found = built(key_of("rows", key), [sizes], _with_text, kept=len(groups) >= KEPT_FROM)
            self._rows, sizes = found["row"], found["size"]
        self.sizes = sizes

    def _sizes_in(self, group: Group) -> Arrays:
        """Bytes of each text of a row group."""
        import pyarrow.compute

        from data_modules.containers.damage import damage

        column = self._table.group(group.file, group.number, [self.field]).column(0)
        lengths: Any = pyarrow.compute.call_function("binary_length", [column])
        sizes = lengths.fill_null(0).to_numpy().astype(np.int64)
        bad = {row: f"'{self.field}' is empty, expected a text" for row in np.flatnonzero(sizes == 0).tolist()}
        if damage(column):
            told = ((row, damage(column.slice(row, 1))) for row in range(len(column)))
            bad |= {row: f"found a damaged text ({reason}), expected UTF-8" for row, reason in told if reason}
            sizes[list(bad)] = 0
        first, skipped = self._table.first_of(group.file, group.number), list[str]()
        for row, rule in sorted(bad.items()):
            sentence = f"{self._table.paths[group.file]}: row {first + row}: {rule}"
            if self.bad_records == "refuse":
                raise ValueError(sentence)
            skipped.append(sentence)
        return {"size": sizes, "empty": np.array([bool(skipped)]), "skipped": texts(skipped)}

    def _row(self, index: int) -> int:
        return int(self._rows[index]) if len(self._rows) else index

    def read(self, index: int) -> bytes:
        return self._table.cell(self._row(index), self.field).encode("utf-8")

    def name(self, index: int) -> str:
        return f"{self.files[0]}#{self._row(index)}"


def _with_text(sizes: Int[np.ndarray, " R"]) -> Arrays:
    """The rows that have text, and its size."""
    rows = np.flatnonzero(sizes)
    return {"row": rows, "size": sizes[rows]}
