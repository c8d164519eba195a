"""Tables of tab-separated values whose cells may hold pictures, of which the places alone are kept."""

from __future__ import annotations

import base64
import binascii
import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from data_modules.containers.reading import look_at, regular

LONGEST = 1 << 28
"""Bytes of a line, and characters of a cell."""
csv.field_size_limit(LONGEST)


class TsvRow(NamedTuple):
    """One row."""

    line: int
    """Of its beginning in the file, from 1."""
    start: int
    size: int
    """Bytes of the file."""
    cells: dict[str, str]
    """Column -> text; those that a short row lacks are empty."""


def tsv_rows(path: str | Path) -> Iterator[TsvRow]:
    """The rows of a table with a header, one at a time.

    Raises:
        ValueError: the file is missing, is not UTF-8, has no header, or a row has more cells than the header.
    """
    look_at(path)
    regular(path)
    try:
        with open(path, "rb") as file:
            source = _Lines(file)
            reader = csv.reader(source, delimiter="\t", strict=True)
            header = next(reader, None)
            if not header:
                raise ValueError(f"{path}: found an empty file, expected a header and rows")
            start, line = source.read, source.count + 1
            for cells in reader:
                if len(cells) > len(header):
                    raise ValueError(f"{path}:{line}: found {len(cells)} cells, expected at most {len(header)}")
                if cells:
                    texts = dict(zip(header, [*cells, *[""] * (len(header) - len(cells))], strict=True))
                    yield TsvRow(line, start, source.read - start, texts)
                start, line = source.read, source.count + 1
    except OSError as error:
        raise ValueError(f"{path}: cannot read the file ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: found a byte that is not UTF-8 ({error.reason}), expected UTF-8 text") from None
    except csv.Error as error:
        raise ValueError(f"{path}: found a table that cannot be read ({error}), expected cells between tabs") from None


class _Lines:
    """Decoded lines of a file; `read` bytes and `count` lines of it have been handed out."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.read, self.count = file, 0, 0

    def __iter__(self) -> Iterator[str]:
        while line := self.file.readline(LONGEST):
            if len(line) == LONGEST:
                raise csv.Error(f"line {self.count + 1} has {LONGEST} bytes or more")
            text = line.decode("utf-8-sig" if not self.count else "utf-8")
            self.read, self.count = self.read + len(line), self.count + 1
            yield text


@dataclass(frozen=True)
class TsvImage:
    """A picture in base64 in the cell of a table."""

    path: str
    start: int
    size: int
    """Bytes of its row in the file."""
    position: int
    """Of its cell in the row, from 0."""
    digest: str
    """Of its text: equal pictures have equal names."""

    @property
    def name(self) -> str:
        return f"{self.path}#{self.digest}"

    def read(self, max_bytes: int) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(self.start)
            row = file.read(self.size).decode("utf-8-sig")
        # Lines end as in `_Lines`, and not at the further breaks of Unicode.
        cells = next(csv.reader(io.StringIO(row, newline="\n"), delimiter="\t"))
        try:
            content = base64.b64decode(cells[self.position], validate=True)
        except (binascii.Error, IndexError):
            raise ValueError(f"{self.name}: found no base64 in the row, expected the picture that was there") from None
        if len(content) > max_bytes:
            raise ValueError(f"{self.name}: found {len(content)} bytes, expected at most {max_bytes}")
        return content
