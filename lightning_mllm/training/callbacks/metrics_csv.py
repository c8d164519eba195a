"""The curves of a stage as one CSV file: a row a step, a column a metric."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping
from pathlib import Path

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from lightning_mllm.weights.disk import NotWritten, writing
from lightning_mllm.weights.files import write_text

REMEDY = "mend it, or move it away: the training goes on without the curves of its first steps"


class MetricsCsv(Logger):
    """Appends to `metrics.csv` as values come; a new metric adds a column.

    A resumed run calls `truncate` with the step that it goes on from, so that no step stands twice in the file.

    Args:
        path: The file.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = Path(path)
        self.columns: list[str] | None = None

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: object, *args: object, **kwargs: object) -> None:
        """Nothing: the run folder holds `config.yaml`."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Adds a row.

        Raises:
            NotWritten: It cannot be written; the file holds the rows before it.
        """
        row = {"step": "" if step is None else str(step), **{k: repr(float(v)) for k, v in sorted(metrics.items())}}
        row.pop("epoch", None)
        if len(row) == 1:
            return
        if self.columns is None:
            self.columns = self._read()[0] or ["step"]
        new = [name for name in row if name not in self.columns]
        if new or not self.path.exists():
            self.columns += new
            self._write([*self._read()[1], row])
            return
        # Numbers need no quotes.
        line = ",".join([row.get(name, "") for name in self.columns]) + "\r\n"
        size = None
        try:
            with writing(self.path), open(self.path, "ab") as file:
                size = file.tell()
                file.write(line.encode())
        except NotWritten:
            if size is not None:
                os.truncate(self.path, size)  # half of a row
            raise

    @rank_zero_only
    def truncate(self, step: int) -> None:
        """Drops the rows of steps after `step`, and a last row that was cut off; 0 empties the file."""
        columns, rows = self._read()
        self.columns = columns if step and columns else ["step"]
        kept = [row for row in rows if step and row["step"].isdigit() and int(row["step"]) <= step]
        if columns:
            self._write(kept)

    def rows(self) -> dict[int, dict[str, float]]:
        """Step -> what the file has of it.

        Raises:
            ValueError: The file is damaged; names the line. A last line that was cut off is no damage.
        """
        found: dict[int, dict[str, float]] = {}
        for number, row in enumerate(self._read()[1], 2):
            if row["step"].isdigit():
                try:
                    values = {name: float(cell) for name, cell in row.items() if name != "step" and cell}
                except ValueError as error:
                    raise ValueError(f"{self.path}:{number}: found {error}, expected numbers; {REMEDY}") from None
                found.setdefault(int(row["step"]), {}).update(values)
        return found

    def _read(self) -> tuple[list[str], list[dict[str, str]]]:
        if not self.path.exists():
            return [], []
        try:
            text = self.path.read_bytes().decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path}: found no text ({error.reason}), expected metrics; {REMEDY}") from None
        lines = text.splitlines() if text.endswith("\n") else text.splitlines()[:-1]
        try:
            columns, *rows = csv.reader(lines, strict=True) if lines else ([],)
        except csv.Error as error:
            raise ValueError(f"{self.path}: found no table ({error}), expected metrics; {REMEDY}") from None
        if columns and (columns[0] != "step" or len(set(columns)) < len(columns)):
            raise ValueError(f"{self.path}: found {lines[0][:60]!r}, expected columns, 'step' first; {REMEDY}")
        for number, row in enumerate(rows, 2):
            if len(row) != len(columns):
                raise ValueError(
                    f"{self.path}:{number}: found {len(row)} cells, expected one for each of {len(columns)} columns;"
                    f" {REMEDY}"
                )
        return columns, [dict(zip(columns, row, strict=True)) for row in rows]

    def _write(self, rows: list[dict[str, str]]) -> None:
        assert self.columns is not None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = io.StringIO(newline="")
        writer = csv.DictWriter(content, self.columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.path, content.getvalue())
