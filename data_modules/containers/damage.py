"""What is wrong with tables: of damaged columns pyarrow would read anywhere in memory, and end the process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet

DAMAGED = (OSError, ValueError, KeyError, TypeError, OverflowError, SystemError, pyarrow.ArrowException)
"""What pyarrow raises of damaged files."""
LISTS = (pyarrow.ListArray, pyarrow.LargeListArray)


def opened_parquet(path: Path) -> pyarrow.parquet.ParquetFile:
    """A .parquet file; of pages with a checksum those are refused that do not have it."""
    return pyarrow.parquet.ParquetFile(path, page_checksum_verification=True)


def reason(error: Exception) -> str:
    """The first line of what pyarrow says."""
    return (str(error) or type(error).__name__).splitlines()[0]


def damage(table: pyarrow.Table | pyarrow.ChunkedArray) -> str:
    """What is wrong with the offsets and texts of a table; empty where nothing is. Bytes of pictures are not read."""
    try:
        table.validate(full=True)
    except pyarrow.ArrowException as error:
        return reason(error)
    return ""


def damage_of_rows(table: pyarrow.Table) -> str:
    """As `damage`, of the rows of a slice alone: of lists pyarrow itself looks at all rows, whatever is asked."""
    try:
        for column in table.columns:
            for chunk in column.chunks:
                _check(chunk)
    except pyarrow.ArrowException as error:
        return reason(error)
    return ""


def _check(array: pyarrow.Array) -> None:
    if isinstance(array, LISTS):
        offsets = array.offsets.to_numpy().astype(np.int64)
        if offsets[0] < 0 or offsets[-1] > len(array.values) or (np.diff(offsets) < 0).any():
            raise pyarrow.ArrowInvalid("lists that are no part of the column")
        _check(array.values.slice(offsets[0], offsets[-1] - offsets[0]))
    elif isinstance(array, pyarrow.StructArray):
        for number in range(array.type.num_fields):
            _check(array.field(number))
    else:
        array.validate(full=True)
