"""A JSON list of records, taken apart without ever holding it: the same scanner as `json` finds where each ends."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from data_modules.containers.json_lines import MAX_RECORD, FoundRecords
from data_modules.containers.offset_index import CACHED_FROM, Arrays, built, fingerprint, key_of, texts, texts_in
from data_modules.containers.protocol import Cut
from data_modules.containers.reading import FILES, not_found

WINDOW = 1 << 22
BLANK_END = 4096
"""Bytes at the end of a file, among which a list's bracket is looked for."""
_BLANK = re.compile(r"[ \t\n\r]*")
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*+"|["\[\]{}]', re.DOTALL)
"""Texts, in which brackets are none, and brackets; a quotation mark alone begins a text without an end."""
_KINDS = {"{": "an object", '"': "a text", "": "nothing"}


class Listed(NamedTuple):
    """A file to take apart."""

    path: Path
    cut: Cut


class JsonList(FoundRecords):
    """A JSON list; the place of a record is its number, counted from 0.

    A file that does not end with the list's bracket is cut.
    """

    def __init__(self, paths: Sequence[Path], cut: Cut = "refuse") -> None:
        super().__init__(paths, cut)
        self.key = key_of("list", 1, cut, [fingerprint(path) for path in self.paths])
        large = sum(path.stat().st_size for path in self.paths) >= CACHED_FROM
        found = built(self.key, [Listed(path, cut) for path in self.paths], records_of, kept=large)
        self._offsets, self._sizes = found["offset"], found["size"]
        self._counted(found["count"])
        self.left_out += texts_in(found["left_out"])

    def _place(self, file: int, number: int) -> str:
        return f"record {number}"


class _Damaged(ValueError):
    """Where it is no JSON, and why."""

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(reason)
        self.offset, self.reason = offset, reason


def records_of(file: Listed) -> Arrays:
    """Where the records of a file begin and how long they are."""
    offsets, ends, left_out = list[int](), list[int](), list[str]()
    try:
        for begin, end in split(file.path, damaged=file.cut == "use"):
            offsets.append(begin)
            ends.append(end)
    except _Damaged as damage:
        sentence = _sentence(file.path, len(offsets), damage)
        if not _is_cut(file.path, damage) or file.cut == "refuse":
            hint = "; `cut: use` takes the records before it" if _is_cut(file.path, damage) else ""
            raise ValueError(f"{sentence}{hint}") from None
        left_out.append(f"{sentence}; the records before it are used")
    begins, stops = np.array(offsets, dtype=np.int64), np.array(ends, dtype=np.int64)
    return {
        "offset": begins,
        "size": stops - begins,
        "count": np.array([len(offsets)]),
        "left_out": texts(left_out),
    }


def _is_cut(path: Path, damage: _Damaged) -> bool:
    """Whether a list has no end: its last bracket may be one of a record."""
    size = path.stat().st_size
    return damage.offset >= size or not FILES.read(
        path, max(0, size - BLANK_END), min(size, BLANK_END)
    ).rstrip().endswith(b"]")


def _sentence(path: Path, number: int, damage: _Damaged) -> str:
    before = FILES.read(path, 0, damage.offset) if damage.offset <= MAX_RECORD else None
    at = f"offset {damage.offset}"
    if before is not None:
        line, column = before.count(b"\n") + 1, damage.offset - before.rfind(b"\n")
        at = f"line {line}, column {column}"
    kind = "found a list that is cut off there, " if _is_cut(path, damage) else ""
    return f"{path}: record {number}: {at}: {kind}expected JSON ({damage.reason})"


def split(path: Path, damaged: bool = False) -> Iterator[tuple[int, int]]:
    """First byte of each record of a JSON list, and the byte behind its last.

    Args:
        damaged: whether records that are no JSON are among them, where their brackets say where they end.

    Raises:
        ValueError: the file is no list, or no JSON.
    """
    try:
        with open(path, "rb") as stream:
            yield from _records(path, _Text(stream, damaged))
    except FileNotFoundError:
        raise not_found(path) from None
    except OSError as error:
        raise ValueError(f"{path}: cannot read the file ({error.strerror})") from None


class _Text:
    """Some of a file, each byte as one character: all that is JSON's own is ASCII, in UTF-8 too."""

    def __init__(self, stream: BinaryIO, damaged: bool) -> None:
        self.stream, self.damaged = stream, damaged
        self.text, self.base, self.at, self.ended = "", 0, 0, False
        self._scan = json.JSONDecoder().raw_decode

    @property
    def offset(self) -> int:
        """In the file."""
        return self.base + self.at

    def more(self) -> None:
        """Drops what was passed and reads on, more each time that it was not enough."""
        block = self.stream.read(max(WINDOW, len(self.text) - self.at))
        self.ended = not block
        self.text, self.base, self.at = self.text[self.at :] + block.decode("latin-1"), self.offset, 0

    def next(self) -> str:
        """Passes blanks; the character there, empty at the end of the file."""
        while True:
            found = _BLANK.match(self.text, self.at)
            assert found is not None
            self.at = found.end()
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self.more()

    def value(self) -> None:
        """Passes a JSON value."""
        while True:
            reason, place = "", self.at
            try:
                _, end = self._scan(self.text, self.at)
                if end < len(self.text) or self.ended:
                    self.at = end
                    return
            except json.JSONDecodeError as error:
                reason, place = error.msg, error.pos
            except RecursionError:
                reason = "lists in lists too deep to read"
            except ValueError:
                reason = "a number that is too long"
            if reason and self.damaged and (end := self._behind_brackets()):
                self.at = end
                return
            if reason.startswith("lists"):
                raise _Damaged(self.offset, reason)
            if self.ended or len(self.text) - self.at > MAX_RECORD:
                raise _Damaged(self.base + place, reason or "no end")
            self.more()

    def _behind_brackets(self) -> int:
        """Where the record ends by its brackets, if another one or the list's end follows there; else 0."""
        depth = 0
        if self.text[self.at : self.at + 1] != "{":
            return 0
        for found in _BRACKETS.finditer(self.text, self.at):
            if found[0] == '"':
                return 0
            depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(found[0], 0)
            if not depth:
                blanks = _BLANK.match(self.text, found.end())
                assert blanks is not None
                return found.end() if self.text[blanks.end() : blanks.end() + 1] in (",", "]") else 0
        return 0


def _records(path: Path, text: _Text) -> Iterator[tuple[int, int]]:
    text.more()
    text.at = 3 if text.text.startswith("\xef\xbb\xbf") else 0
    if (found := text.next()) != "[":
        kind = _KINDS.get(found, f"{found!r}")
        raise ValueError(f"{path}: found {kind}, expected a list of records (lines belong in a .jsonl file)")
    text.at += 1
    if text.next() != "]":
        while True:
            begin = (text.next(), text.offset)[1]
            text.value()
            yield begin, text.offset
            found = text.next()
            if found == "]":
                break
            if found != ",":
                raise _Damaged(text.offset, f"{found!r} in place of ',' or ']'" if found else "the end of the file")
            text.at += 1
    text.at += 1
    if text.next():
        raise ValueError(f"{path}: found more at offset {text.offset}, expected nothing behind the list of records")
