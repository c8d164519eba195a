"""Row groups that a process keeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from data_modules.containers import tables
from data_modules.containers.tables import Parquet


def test_four_row_groups_are_kept_however_large_and_more_of_small_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of four groups in turn cost four reads; those of six in turn cost one each, unless all fit."""
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": [f"row {k}" for k in range(60)]}), path, row_group_size=10)
    reads: Counter[int] = Counter()
    group = Parquet.group

    def counted(self: Parquet, file: int, number: int, columns: Sequence[str]) -> pyarrow.Table:
        reads[number] += 1
        return group(self, file, number, columns)

    monkeypatch.setattr(Parquet, "group", counted)
    for held, groups, expected in ((0, 4, 1), (0, 6, 10), (1 << 20, 6, 1)):
        monkeypatch.setattr(tables, "HELD", held)
        rows = Parquet([path])
        reads.clear()
        for number in range(10):
            for each in range(groups):
                assert rows[10 * each + number] == {"text": f"row {10 * each + number}"}
        assert reads == dict.fromkeys(range(groups), expected), (held, groups)
