"""Plain text of any size: documents are found by where they stand, and never held all at once."""

from __future__ import annotations

import glob
import re
from abc import abstractmethod
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from jaxtyping import Int

from data_modules.containers.reading import not_found, regular
from data_modules.sources.files import BadRecords
from data_modules.sources.source import Source
from lightning_mllm.contracts import Documents, Sample

REACH = 64
"""Bytes within which a cut waits for the next word."""


class TextSource(Source):
    """Documents in files.

    Loading reads each file once, checks every document and keeps a few numbers for each.

    Args:
        files: a name, a pattern with `*`, or a list of them; relative to the working folder. Files that match a pattern
            are in the order of their names.
        bad_records: 'refuse' or 'skip', as in FileSource.
    """

    def __init__(self, files: str | list[str], bad_records: BadRecords = "refuse") -> None:
        if bad_records not in get_args(BadRecords):
            raise ValueError(f"bad_records: found {bad_records!r}, expected 'refuse' or 'skip'")
        self.files = [files] if isinstance(files, str) else list(files)
        self.bad_records = bad_records
        self.paths: list[Path] = []
        self.skipped: list[str] = []
        """One sentence for each document that was left out."""
        self.sizes: Int[np.ndarray, " N"] = np.zeros(0, dtype=np.int64)
        """Bytes of each document in UTF-8, all above 0."""

    @abstractmethod
    def _index(self) -> None:
        """Checks the files in `paths` and sets `sizes`."""

    @abstractmethod
    def read(self, index: int) -> bytes:
        """Document `index` in UTF-8."""

    @abstractmethod
    def name(self, index: int) -> str:
        """How error messages call document `index`."""

    def load(self) -> None:
        if len(self.sizes):
            return
        for pattern in self.files:
            found = sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern]
            if not found:
                raise not_found(pattern)
            for each in found:
                regular(each)
            self.paths += map(Path, found)
        self._index()
        if not len(self.sizes):
            left_out = f" ({len(self.skipped)} left out, first: {self.skipped[0]})" if self.skipped else ""
            raise ValueError(f"{', '.join(self.files)}: found no document, expected at least one{left_out}")

    def _bad(self, error: ValueError) -> None:
        """What happens to a document that broke a rule."""
        if self.bad_records == "refuse":
            raise error from None
        self.skipped.append(str(error))

    def part(self, index: int, begin: int, end: int) -> tuple[str, bool]:
        """About bytes `begin` to `end` of a document, and whether they are its end.

        Parts that share a border in bytes share no character.
        """
        text = self.read(index)
        begin, end = border(text, begin), border(text, end)
        return text[begin:end].decode("utf-8"), end == len(text)

    def __len__(self) -> int:
        assert len(self.sizes), "call load first"
        return len(self.sizes)

    def sample(self, index: int, generator: torch.Generator) -> Sample:
        """The whole document; in a row of its own it is read as far as the net reads."""
        documents = Documents(texts=(self.read(index).decode("utf-8"),))
        return Sample(id=self.name(index), documents=documents, task="perplexity")

    def length(self, index: int) -> int:
        return -(-int(self.sizes[index]) // 6)  # an English word and its blank have about six letters

    def has_image(self, index: int) -> bool:
        return False


def border(text: bytes, cut: int) -> int:
    """Where a text is cut that is to be cut at byte `cut`: before the next word or behind the last one, if it is near;
    else before the next character."""
    if cut <= 0:
        return 0
    if word := re.search(rb"\s\S", text[cut - 1 : cut + REACH]):
        return cut + word.start()
    if cut + REACH >= len(text):
        return len(text)
    while cut < len(text) and text[cut] & 0xC0 == 0x80:
        cut += 1
    return cut
