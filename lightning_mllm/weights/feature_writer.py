"""Writes `feature_store.py`'s files: one process at a time, which goes on where a killed one was."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lightning_mllm.contracts import ImageFile
from lightning_mllm.weights.feature_store import (
    FACTS,
    FEATURES,
    FILE,
    FILES,
    IMAGE,
    IMAGES,
    FeatureStore,
    Words,
    name_of,
    read_facts,
    words,
)
from lightning_mllm.weights.files import write_bytes, write_text

LOCK = ".lock"
RECENT = 1_000_000_000
"""Nanoseconds: a file that changed within them may change again without a change of its times, and is not noted."""
TOLERANCE = 0.02
"""By how much, as a share of its norm, the blank image may differ: what 16 bits and other devices make of it."""
HELD = 256 * 2**20
"""Bytes of features that are written before what names them is."""

Times = tuple[int, int, int]


class FeatureWriter:
    """Appends rows to a store; made by `writing`.

    Args:
        store: As it was found, whole rows only.
    """

    def __init__(self, store: FeatureStore, features: BinaryIO, images: BinaryIO, files: BinaryIO) -> None:
        self.store, self.rows = store, store.rows
        self._features, self._images, self._files = features, images, files
        self._new: dict[Words, int] = {}
        self._waiting: tuple[list[Any], list[Any]] = ([], [])
        self._held = 0

    def row_of(self, digest: Words) -> int | None:
        """The row of an image of these bytes, written before or now; None if there is none."""
        return self._new.get(digest, self.store.row_of_bytes(digest))

    def append(
        self, digests: Sequence[Words], sizes: Sequence[tuple[int, int]], features: Float[Tensor, "N V F"]
    ) -> None:
        """New rows.

        Args:
            digests: Of the bytes of each image.
            sizes: Width and height of each picture.
            features: Of their views, in the dtype of the store.
        """
        assert features.dtype == self.store.dtype and features[0].nbytes == self.store.row_bytes
        self._features.write(features.contiguous().view(torch.uint8).numpy().tobytes())
        for digest, size in zip(digests, sizes, strict=True):
            self._new[digest] = self.rows
            self.rows += 1
            self._waiting[0].append((digest, size))
        self._held += features.nbytes
        if self._held >= HELD:
            self.flush()

    def note(self, ref: ImageFile, times: Times, row: int) -> None:
        """That a file had these bytes and times when the image in `row` was read from it; nothing if it is too new."""
        if time.time_ns() - max(times[1:]) >= RECENT:
            self._waiting[1].append((name_of(ref), *times, row))

    def flush(self) -> None:
        """Makes the rows last, then what names them, then the files that show them."""
        images, files = self._waiting
        self._waiting, self._held = ([], []), 0
        _sync(self._features)
        for stream, records, dtype in ((self._images, images, IMAGE), (self._files, files, FILE)):
            if records:
                stream.write(np.array(records, dtype).tobytes())
                _sync(stream)


@contextmanager
def writing(folder: Path, facts: Mapping[str, Any], blank: Float[Tensor, "V F"]) -> Iterator[FeatureWriter]:
    """The writer of a store, which is made where there is none.

    Args:
        folder: Of the store.
        facts: What it says of itself (`store.json`).
        blank: What the tower makes of the blank image, now; a store has it from its beginning.

    Raises:
        ValueError: Another process writes there, or what is there was made in another dtype or precision, or by a
            tower that gives other features of the same image.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{folder}: is being written by another process, expected one at a time") from None
        if not (folder / FACTS).is_file():
            write_text(folder / FACTS, json.dumps(facts, indent=2) + "\n")
        known = read_facts(folder)
        if (found := known["dtype"]) != facts["dtype"]:
            raise ValueError(f"{folder}: found features in {found}, expected {facts['dtype']}; write to another folder")
        if (found := known.get("computed_in")) != facts.get("computed_in"):
            # Rows of both would stand beside one another.
            raise ValueError(
                f"{folder}: found features that a tower computed in {found}, expected {facts.get('computed_in')}, as"
                " hardware.precision is; write them to another folder"
            )
        store = _whole_rows(folder)
        opened = ((folder / name).open("ab") for name in (FEATURES, IMAGES, FILES))
        with next(opened) as features, next(opened) as images, next(opened) as files:
            writer = FeatureWriter(store, features, images, files)
            if store.rows:
                _check_blank(store, blank)
            else:
                writer.append([words(b"")], [(0, 0)], blank.unsqueeze(0))
            try:
                yield writer
            finally:
                writer.flush()


def _whole_rows(folder: Path) -> FeatureStore:
    """The store without what a killed process left behind its last whole row."""
    store = FeatureStore(folder)
    keep = {FEATURES: store.rows * store.row_bytes, IMAGES: store.rows * IMAGE.itemsize}
    for name, size in keep.items():
        if (folder / name).is_file() and (folder / name).stat().st_size > size:
            os.truncate(folder / name, size)
    if (folder / FILES).is_file():
        notes = np.fromfile(folder / FILES, FILE, (folder / FILES).stat().st_size // FILE.itemsize)
        # The number of a row that is lost will be that of another image.
        if (kept := notes[notes["row"] < store.rows].tobytes()) != (folder / FILES).read_bytes():
            write_bytes(folder / FILES, kept)
    return FeatureStore(folder)


def _check_blank(store: FeatureStore, blank: Float[Tensor, "V F"]) -> None:
    known, new = store.blank.float(), blank[:1].float()
    off = float((known - new).norm() / new.norm().clamp(min=1e-12))
    if not off <= TOLERANCE:
        raise ValueError(
            f"{store.folder}: found features of the blank image that are {off:.1%} off those of the tower as it"
            " computes now, expected the same; its code has changed, write to another folder"
        )


def _sync(stream: BinaryIO) -> None:
    stream.flush()
    os.fsync(stream.fileno())
