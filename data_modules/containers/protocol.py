"""What every file of records answers, whatever its format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from jaxtyping import Int

from data_modules.containers.reading import FILES, located
from lightning_mllm.contracts import ImageRef

Cut = Literal["refuse", "use"]
"""What is done about a file whose end is missing: stop, or use the complete records before the cut."""


class Records(Protocol):
    """Records by number, in the order of the files and in them."""

    @property
    def paths(self) -> Sequence[Path]:
        """The files."""
        ...

    @property
    def left_out(self) -> Sequence[str]:
        """One sentence for each file whose end is missing, where `cut` says 'use'."""
        ...

    @property
    def key(self) -> str:
        """A digest of the content: equal for equal files alone (see `offset_index.fingerprint`)."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> object:
        """The parsed record, pictures left out; RecordError where it is damaged."""
        ...

    def place(self, index: int) -> str:
        """The record in its file as `refused` takes it: ":12" for a line, "record 12", or "00003.tar: 000031234";
        with the file's name in front where there are several."""
        ...

    def where(self, index: int) -> str:
        """Path and record, as error messages begin."""
        ...

    def images(self, index: int) -> Mapping[str, ImageRef]:
        """The pictures that are stored with the record, unread, by the names that it may call them by."""
        ...

    def runs(self) -> Int[np.ndarray, " R"]:
        """How many records after one another are read at the cost of one: of a shard or a row group."""
        ...


class FilesOfRecords(ABC):
    """Records of several files of one format.

    Args:
        paths: the files.
        cut: as in Cut.
    """

    def __init__(self, paths: Sequence[Path], cut: Cut = "refuse") -> None:
        self.paths, self.cut = list(paths), cut
        self.left_out: list[str] = []
        self.key = ""
        self._firsts: Int[np.ndarray, " F"] = np.zeros(1, dtype=np.int64)

    def _counted(self, counts: Sequence[int] | Int[np.ndarray, " F"]) -> None:
        """So many records has each file."""
        self._firsts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def _located(self, index: int) -> tuple[int, int]:
        """Of record `index` the file, and its number in it."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        file = int(np.searchsorted(self._firsts, index, side="right")) - 1
        return file, index - int(self._firsts[file])

    @abstractmethod
    def __getitem__(self, index: int) -> object: ...

    @abstractmethod
    def _place(self, file: int, number: int) -> str:
        """Record `number` of a file, as `refused` takes it."""

    def place(self, index: int) -> str:
        file, number = self._located(index)
        place = self._place(file, number)
        return place if len(self.paths) == 1 else located(self.paths[file].name, place)

    def where(self, index: int) -> str:
        file, number = self._located(index)
        return located(self.paths[file], self._place(file, number))

    def images(self, index: int) -> Mapping[str, ImageRef]:
        return {}

    def runs(self) -> Int[np.ndarray, " R"]:
        """Of each file."""
        counts = np.diff(self._firsts)
        return counts[counts > 0]


@dataclass(frozen=True)
class StoredImage:
    """A picture inside a larger file."""

    path: Path
    offset: int
    bytes: int
    member: str
    """Its name there."""
    size: tuple[int, int] | None = None
    """As in ImageFile."""

    @property
    def name(self) -> str:
        return f"{self.path}:{self.member}"

    def read(self, max_bytes: int) -> bytes:
        if self.bytes > max_bytes:
            raise ValueError(f"{self.name}: found {self.bytes} bytes, expected at most {max_bytes}")
        return FILES.read(self.path, self.offset, self.bytes)
