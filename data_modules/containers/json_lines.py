"""Lines of JSON, found by their line ends."""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from data_modules.containers.offset_index import CACHED_FROM, Arrays, built, fingerprint, key_of, texts, texts_in
from data_modules.containers.protocol import Cut, FilesOfRecords
from data_modules.containers.reading import FILES, RecordError, located, parse

PIECE = 64 << 20
"""Bytes of a file that one process looks through at once."""
BLOCK = 1 << 22
MAX_RECORD = 1 << 28
"""Bytes; a record with pictures in it has some megabytes."""
LONGEST = 4 * MAX_RECORD
"""Bytes of a line without an end, at which the file is given up."""
BLANKS = b" \t\r\n"
MARK = codecs.BOM_UTF8


class Piece(NamedTuple):
    """The lines of a file that begin in bytes `begin` to `end`."""

    path: Path
    begin: int
    end: int
    size: int
    """Of the file."""
    cut: Cut


class FoundRecords(FilesOfRecords):
    """Records that stand somewhere in their files as JSON."""

    _offsets: Int[np.ndarray, " N"]
    _sizes: Int[np.ndarray, " N"]

    def _bytes(self, index: int) -> bytes:
        file, _ = self._located(index)
        size = int(self._sizes[index])
        if size > MAX_RECORD:
            raise RecordError(f"found a record of {size} bytes, expected at most {MAX_RECORD}")
        return FILES.read(self.paths[file], int(self._offsets[index]), size)

    def __getitem__(self, index: int) -> object:
        return parse(self._bytes(index))


class JsonLines(FoundRecords):
    """Lines of JSON; blank ones are passed over, and the place of a record is its line, counted from 1.

    A file whose last line has no end and is no JSON is cut.
    """

    def __init__(self, paths: Sequence[Path], cut: Cut = "refuse") -> None:
        super().__init__(paths, cut)
        self.key = key_of("lines", 1, cut, PIECE, [fingerprint(path) for path in self.paths])
        pieces, of = list[Piece](), list[int]()
        for file, path in enumerate(self.paths):
            size = os.path.getsize(path)
            for begin in range(0, max(size, 1), PIECE):
                pieces.append(Piece(path, begin, min(begin + PIECE, size), size, cut))
                of.append(file)
        large = sum(piece.end - piece.begin for piece in pieces) >= CACHED_FROM
        found = built(self.key, pieces, lines_of, {"blank": "offset"}, kept=large)
        self._offsets, self._sizes, self._blank = found["offset"], found["size"], found["blank"]
        self._counted(np.bincount(of, found["count"], len(self.paths)).astype(np.int64))
        self.left_out += texts_in(found["left_out"])

    def _place(self, file: int, number: int) -> str:
        first = int(self._firsts[file])
        before = np.searchsorted(self._blank, [first, first + number], side="right")
        # Those at the border of two files stand at the end of the first one.
        return f":{number + 1 + int(before[1] - before[0]) + self._blank_at_start(file)}"

    def _blank_at_start(self, file: int) -> int:
        """Blank lines in front of the first record of a file."""
        if not len(self._blank) or not self._firsts[file + 1] > self._firsts[file]:
            return 0
        begin = int(self._offsets[self._firsts[file]])
        return FILES.read(self.paths[file], 0, begin).count(b"\n") if begin else 0


def lines_of(piece: Piece) -> Arrays:
    """Where the lines of a piece begin and how long they are, without their ends."""
    begins, sizes, blank = list[np.ndarray](), list[np.ndarray](), list[int]()
    count, left_out = 0, list[str]()
    for begin, end in _borders(piece):
        first = _first_bytes(piece.path, begin, end)
        keep, passed = np.ones(len(begin), dtype=bool), 0
        for k in np.flatnonzero(np.isin(first, list(BLANKS))):
            if begin[k] == end[k] or not FILES.read(piece.path, int(begin[k]), int(end[k] - begin[k])).strip():
                keep[k] = False
                blank.append(count + int(k) - passed)
                passed += 1
        if len(end) and end[-1] == piece.size and keep[-1] and (sentence := _cut_off(piece, int(begin[-1]))):
            keep[-1] = False
            left_out.append(sentence)
        begins.append(begin[keep])
        sizes.append((end - begin)[keep])
        count += int(keep.sum())
    empty = np.zeros(0, dtype=np.int64)
    return {
        "offset": np.concatenate([empty, *begins]),
        "size": np.concatenate([empty, *sizes]),
        "blank": np.array(blank, dtype=np.int64),
        "count": np.array([count]),
        "left_out": texts(left_out),
    }


def _borders(piece: Piece) -> Iterator[tuple[Int[np.ndarray, " L"], Int[np.ndarray, " L"]]]:
    """Where lines begin and end, some at a time; an end is that of the line's last byte before its b"\\n"."""
    place = begin = piece.begin
    if not begin and piece.size >= len(MARK) and FILES.read(piece.path, 0, len(MARK)) == MARK:
        begin = len(MARK)
    elif begin and FILES.read(piece.path, begin - 1, 1) != b"\n":
        begin = -1  # in the middle of a line of the piece before
    while place < piece.size:
        block = FILES.read(piece.path, place, min(BLOCK, piece.size - place))
        ends = np.flatnonzero(np.frombuffer(block, dtype=np.uint8) == ord("\n")).astype(np.int64) + place
        place += len(block)
        if begin < 0 and len(ends):
            begin, ends = int(ends[0]) + 1, ends[1:]
        if not len(ends) and place - max(begin, piece.begin) > LONGEST:
            raise ValueError(f"{piece.path}: found a line of more than {LONGEST} bytes, expected lines of JSON")
        if begin < 0:
            if place >= piece.end:
                return
            continue
        begins = np.concatenate([[begin], ends + 1])
        ours = begins[:-1] < piece.end
        yield begins[:-1][ours], ends[ours]
        begin = int(begins[-1])
        if begin >= piece.end:
            return
    if 0 <= begin < piece.size:
        yield np.array([begin]), np.array([piece.size])


def _first_bytes(path: Path, begin: Int[np.ndarray, " L"], end: Int[np.ndarray, " L"]) -> np.ndarray:
    """The first byte of each of some lines near one another; a line end where the line is empty."""
    if not len(begin):
        return np.zeros(0, dtype=np.uint8)
    start = int(begin[0])
    block = FILES.read(path, start, int(end[-1]) - start) + b"\n"
    return np.frombuffer(block, dtype=np.uint8)[begin - start]


def _cut_off(piece: Piece, begin: int) -> str:
    """What is wrong with a last line that has no end, if it is no JSON."""
    size = piece.size - begin
    try:
        if size <= MAX_RECORD:
            json.loads(FILES.read(piece.path, begin, size).decode("utf-8-sig"))
            return ""
    except UnicodeDecodeError as error:
        if error.end < size:
            return ""  # damaged within
    except (ValueError, RecursionError):
        pass
    line = FILES.read(piece.path, 0, begin).count(b"\n") + 1
    sentence = located(piece.path, f":{line}: found a last line of {size} bytes that is cut off")
    if piece.cut == "refuse":
        raise ValueError(f"{sentence}, expected whole lines of JSON; `cut: use` takes the lines before it")
    return f"{sentence}; the lines before it are used"
