"""What a frozen tower made of images, in files that are read by memory mapping.

    FOLDER/<key>/store.json     what the features are of (tower, weights, preprocessing: the key), their dtype and shape
                 features.bin   of each image f[views, F], F the vectors of all groups one behind the other; of the
                                first row, the blank image of a batch without images
                 images.bin     of each row: digest of the image's bytes; width and height of the picture
                 files.bin      of each file that was read: name, bytes and times, and its row

An image is known by its bytes. A file whose size and times are those that were noted is not read again; any other is
read and hashed, and has features if an image of the same bytes has. Files grow at their end only, features before what
names them, so that one reader or many may look while one process writes, and nothing half-written is ever named.

Legend: V vectors and D width of a group.
"""

from __future__ import annotations

import os
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lightning_mllm.contracts import ImageFile, ImageRef
from lightning_mllm.weights.plain_files import read_object

FACTS, FEATURES, IMAGES, FILES = "store.json", "features.bin", "images.bin", "files.bin"
IMAGE = np.dtype([("digest", "<u8", 2), ("size", "<u4", 2)])
FILE = np.dtype([("name", "<u8", 2), ("bytes", "<u8"), ("modified", "<i8"), ("changed", "<i8"), ("row", "<i8")])
FORMAT = 1
DTYPES = ("float32", "bfloat16", "float16")

Words = tuple[int, int]
"""128 bits of BLAKE2b."""


def words(content: bytes) -> Words:
    digest = blake2b(content, digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def name_of(ref: ImageFile) -> Words:
    """Of the file, from whichever folder it is named."""
    return words(os.path.abspath(ref.path).encode())


def times_of(ref: ImageFile) -> tuple[int, int, int]:
    """Bytes, and nanoseconds of its last write and of its last change of any kind, which no program can set back."""
    found = os.stat(ref.path)
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


class Records:
    """Records of 128 bits in a column, found by them; of equal ones the last."""

    def __init__(self, path: Path, dtype: np.dtype, column: str) -> None:
        whole = path.stat().st_size // dtype.itemsize if path.is_file() else 0
        self.all = np.fromfile(path, dtype, whole) if whole else np.empty(0, dtype)
        self._order = np.argsort(self.all[column][:, 0], kind="stable")
        self._first, self._second = self.all[column][self._order].T

    def __len__(self) -> int:
        return len(self.all)

    def find(self, key: Words) -> int | None:
        """The number of the record; None if there is none."""
        at = int(np.searchsorted(self._first, np.uint64(key[0]), side="right"))
        while at and int(self._first[at - 1]) == key[0]:
            at -= 1
            if int(self._second[at]) == key[1]:
                return int(self._order[at])
        return None


class FeatureStore:
    """The features of one tower, as far as they were written when it was opened.

    Args:
        folder: Of the store.

    Raises:
        ValueError: There is none, or it is of another version.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.facts = read_facts(folder)
        self.dtype: torch.dtype = getattr(torch, self.facts["dtype"])
        self.groups: list[tuple[int, int]] = [(vectors, width) for vectors, width in self.facts["groups"]]
        """V and D of each."""
        self.views: int = self.facts["views"]
        self.width = sum(vectors * width for vectors, width in self.groups)
        """F."""
        self.row_bytes: int = self.views * self.width * self.dtype.itemsize
        self._images, self._files = Records(folder / IMAGES, IMAGE, "digest"), Records(folder / FILES, FILE, "name")
        file = folder / FEATURES
        written = file.stat().st_size // self.row_bytes if file.is_file() else 0
        self.rows = min(written, len(self._images))
        """Images with features, the blank one included."""
        self._features = np.memmap(file, np.uint8, "r", shape=(self.rows, self.row_bytes)) if self.rows else None

    def __reduce__(self) -> tuple[type[FeatureStore], tuple[Path]]:
        # A worker that is spawned maps the file itself: a pickled mapping would be all of its bytes.
        return FeatureStore, (self.folder,)

    def find(self, ref: ImageRef, max_bytes: int) -> int | None:
        """The row of an image; None if there is none of these bytes.

        Raises:
            ValueError: It cannot be read, or has more than `max_bytes`.
        """
        if isinstance(ref, ImageFile) and (row := self.row_of_file(ref)) is not None:
            return row
        return self.row_of_bytes(words(ref.read(max_bytes)))

    def row_of_file(self, ref: ImageFile) -> int | None:
        """The row of a file that has not changed since it was noted."""
        try:
            times = times_of(ref)
        except OSError:
            return None
        if (number := self._files.find(name_of(ref))) is None:
            return None
        _, *noted, row = self._files.all[number].tolist()
        return row if tuple(noted) == times and row < self.rows else None

    def row_of_bytes(self, digest: Words) -> int | None:
        row = self._images.find(digest)
        return row if row is not None and row < self.rows else None

    def size(self, row: int) -> tuple[int, int]:
        """Width and height of the picture, as it was decoded."""
        wide, high = self._images.all["size"][row].tolist()
        return wide, high

    def __getitem__(self, row: int) -> Float[Tensor, "N F"]:
        """The features of the views of an image, a copy."""
        assert self._features is not None and 0 <= row < self.rows, (row, self.rows)
        return torch.from_numpy(np.array(self._features[row])).view(self.dtype).view(self.views, self.width)

    @property
    def blank(self) -> Float[Tensor, "1 F"]:
        """Of the blank image, which has one view."""
        return self[0][:1]


def read_facts(folder: Path) -> dict[str, Any]:
    """What a store says of itself.

    Raises:
        ValueError: There is none, or it is of another version.
    """
    file = folder / FACTS
    if not file.is_file():
        raise ValueError(f"{folder}: found no {FACTS}, expected features that mllm cache has written")
    facts: dict[str, Any] = read_object(file, "what features are of")
    if (found := facts.get("format")) != FORMAT:
        raise ValueError(f"{file}: found format {found!r}, expected {FORMAT}; mllm cache writes it to another folder")
    return facts
