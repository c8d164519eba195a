"""Plain text in tables, which `datasets` maps into memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Int

from data_modules.sources.files import BadRecords
from data_modules.sources.plain_text import TextSource


class TextTable(TextSource):
    """A column of .parquet files, as RefinedWeb is published (arXiv 2306.01116: the column `content`).

    `datasets` unpacks the files once into its cache and maps them into memory from there.

    Args:
        files: as in TextSource.
        field: the name of the column.
        bad_records: 'refuse' or 'skip' (rows without text), as in FileSource.
        cache: the folder of `datasets`; None for its own.
    """

    def __init__(
        self,
        files: str | list[str],
        field: str = "content",
        bad_records: BadRecords = "refuse",
        cache: str | None = None,
    ) -> None:
        super().__init__(files, bad_records)
        self.field, self.cache = field, cache
        self._table: Any = None
        self._rows: Int[np.ndarray, " N"] = np.zeros(0, dtype=np.int64)

    def _index(self) -> None:
        # Slow to import, and of no use to other sources.
        import datasets
        import pyarrow
        import pyarrow.compute
        import pyarrow.parquet

        counts = []
        for path in self.paths:
            try:
                schema, rows = pyarrow.parquet.read_schema(path), pyarrow.parquet.read_metadata(path).num_rows
            except (OSError, pyarrow.ArrowException) as error:
                reason = str(error).splitlines()[0]
                raise ValueError(f"{path}: found no table ({reason}), expected a .parquet file") from None
            kind = schema.field(self.field).type if self.field in schema.names else None
            if kind not in (pyarrow.string(), pyarrow.large_string()):
                found = f"the columns {', '.join(schema.names)}" if kind is None else f"'{self.field}' of type {kind}"
                raise ValueError(f"{path}: found {found}, expected texts in '{self.field}'")
            counts.append(rows)
        bars = datasets.is_progress_bar_enabled()
        datasets.disable_progress_bars()
        try:
            table = datasets.load_dataset(
                "parquet", data_files=list(map(str, self.paths)), split="train", cache_dir=self.cache
            )
        finally:
            if bars:
                datasets.enable_progress_bars()
        assert isinstance(table, datasets.Dataset)
        self._table = table.select_columns([self.field])
        # Of the column only its offsets are read.
        lengths: Any = pyarrow.compute.call_function("binary_length", [self._table.data.column(self.field)])
        sizes = lengths.fill_null(0).to_numpy().astype(np.int64)
        ends = np.cumsum(counts)
        for row in np.flatnonzero(sizes == 0).tolist():
            file = int(np.searchsorted(ends, row, side="right"))
            within = row - (int(ends[file - 1]) if file else 0)
            self._bad(ValueError(f"{self.paths[file]}: row {within}: '{self.field}' is empty, expected a text"))
        self._rows = np.flatnonzero(sizes)
        self.sizes = sizes[self._rows]

    def read(self, index: int) -> bytes:
        return self._table[int(self._rows[index])][self.field].encode("utf-8")

    def name(self, index: int) -> str:
        return f"{self.files[0]}#{self._rows[index]}"
