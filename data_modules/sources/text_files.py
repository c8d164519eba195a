"""Plain text in files that are read as they are: text files, and lines of JSON."""

from __future__ import annotations

import codecs
import os
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int

from data_modules.sources.files import BadRecords
from data_modules.sources.plain_text import TextSource
from data_modules.sources.records import MAX_TEXT, RecordError, parse, refused, text_of

LONGEST_LINE = 8 * MAX_TEXT
"""Bytes: a text of MAX_TEXT characters with every character escaped has fewer."""
BLOCK = 1 << 20
LARGEST = 1 << 30
"""Bytes of a file that is one document."""


class TextFiles(TextSource):
    """Text files in UTF-8.

    Args:
        files: as in TextSource.
        documents: "file": each file is one; "blank_line": blank lines stand between two.
        bad_records: 'refuse' or 'skip' (files that are not UTF-8, or empty).
    """

    def __init__(
        self,
        files: str | list[str],
        documents: Literal["file", "blank_line"] = "file",
        bad_records: BadRecords = "refuse",
    ) -> None:
        super().__init__(files, bad_records)
        if documents not in ("file", "blank_line"):
            raise ValueError(f"documents: found {documents!r}, expected 'file' or 'blank_line'")
        self.documents = documents
        self._places = _Places()

    def _index(self) -> None:
        for path in self.paths:
            self._places.open()
            try:
                found = list(_paragraphs(path) if self.documents == "blank_line" else _whole(path))
            except ValueError as error:
                self._bad(error)
                continue
            for begin, size in found:
                self._places.add(begin, size)
        self.sizes = self._places.array()

    def read(self, index: int) -> bytes:
        file, begin, _ = self._places[index]
        with open(self.paths[file], "rb") as stream:
            stream.seek(begin)
            return stream.read(int(self.sizes[index]))

    def name(self, index: int) -> str:
        file, _, number = self._places[index]
        return f"{self.paths[file]}#{number}"


class TextLines(TextSource):
    """Lines {"text": "..."} of .jsonl files; other fields are not looked at.

    Args:
        files: as in TextSource.
        field: the name of the text.
        bad_records: 'refuse' or 'skip', as in FileSource.
    """

    def __init__(self, files: str | list[str], field: str = "text", bad_records: BadRecords = "refuse") -> None:
        super().__init__(files, bad_records)
        self.field = field
        self._places = _Places()

    def _index(self) -> None:
        for path in self.paths:
            self._places.open()
            begin = 0
            for number, line in _lines(path):
                record: object = None
                try:
                    if line.strip():
                        record = parse(line, halves=True)
                        self._places.add(begin, len(self._text(record)))
                except RecordError as rule:
                    self._bad(refused(path, f":{number}", record, rule))
                begin += len(line)
        self.sizes = self._places.array()

    def read(self, index: int) -> bytes:
        file, begin, _ = self._places[index]
        with open(self.paths[file], "rb") as stream:
            stream.seek(begin)
            return self._text(parse(stream.readline(), halves=True))

    def _text(self, record: object) -> bytes:
        try:
            return text_of(record, self.field, MAX_TEXT).encode("utf-8")
        except UnicodeEncodeError:
            raise RecordError(f"'{self.field}' has half of a surrogate pair, expected whole characters") from None

    def name(self, index: int) -> str:
        file, _, number = self._places[index]
        return f"{self.paths[file]}#{number}"


class _Places:
    """Where each document begins, and how large it is; documents of a file are numbered from 0."""

    def __init__(self) -> None:
        self._begins, self._sizes, self._firsts = array("q"), array("q"), array("q")

    def open(self) -> None:
        """Documents that are added from now on stand in the next file."""
        self._firsts.append(len(self._begins))

    def add(self, begin: int, size: int) -> None:
        self._begins.append(begin)
        self._sizes.append(size)

    def array(self) -> Int[np.ndarray, " N"]:
        """The sizes."""
        return np.array(self._sizes, dtype=np.int64)

    def __getitem__(self, index: int) -> tuple[int, int, int]:
        """File, first byte in it, and number in it."""
        if not 0 <= index < len(self._begins):
            raise IndexError(index)
        file = bisect_right(self._firsts, index) - 1
        return file, self._begins[index], index - self._firsts[file]


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number (from 1) and bytes of every line, its end included."""
    with open(path, "rb") as stream:
        number = 0
        while line := stream.readline(LONGEST_LINE):
            number += 1
            if len(line) == LONGEST_LINE:
                raise ValueError(f"{path}:{number}: found a line of {LONGEST_LINE} bytes or more, expected fewer")
            yield number, line


def _whole(path: Path) -> Iterator[tuple[int, int]]:
    """The one document of a file: where it begins and how many bytes it has."""
    if (size := os.path.getsize(path)) > LARGEST:
        raise ValueError(f"{path}: found a document of {size} bytes, expected at most {LARGEST}")
    decoder, begin, blank = codecs.getincrementaldecoder("utf-8")(), 0, True
    with open(path, "rb") as stream:
        while True:
            block = stream.read(BLOCK)
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                place = begin - pending + error.start
                raise ValueError(
                    f"{path}: found a byte that is not UTF-8 at offset {place}, expected UTF-8 text"
                ) from None
            blank &= not block.strip()
            if not block:
                break
            begin += len(block)
    if blank:
        raise ValueError(f"{path}: found no text, expected some")
    yield 0, begin


def _paragraphs(path: Path) -> Iterator[tuple[int, int]]:
    """Of each run of lines without a blank one between them where it begins and how many bytes it has."""
    place = begin = end = 0
    for number, line in _lines(path):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path}:{number}: found a byte that is not UTF-8 at offset {error.start}, expected UTF-8 text"
            ) from None
        if line.strip():
            end = place + len(line.rstrip())
        elif end > begin:
            yield begin, end - begin
        place += len(line)
        if not line.strip():
            begin = end = place
    if end > begin:
        yield begin, end - begin
