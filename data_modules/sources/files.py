"""Sources that are read whole from annotation files and a folder of images."""

from __future__ import annotations

import json
from abc import abstractmethod
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, get_args

import numpy as np

from data_modules.containers.offset_index import Arrays, built, key_of, texts, texts_in
from data_modules.containers.reading import files_looked_at
from data_modules.sources.addresses import image_at, image_folder
from data_modules.sources.checked import Given, states, still
from data_modules.sources.records import Packed, located, packed
from data_modules.sources.source import BadRecords, Source
from lightning_mllm.contracts import ImageRef


class Entry(NamedTuple):
    """A checked record."""

    words: int
    image: bool
    value: Any
    """What the source builds samples from; anything that JSON can hold."""
    place: str = ""
    """Of the record in its file, as `refused` takes it."""


CACHED_FROM = 32 << 20
"""Bytes of annotations. What is kept of fewer is kept in memory, by each process for itself."""


class FileSource(Given, Source):
    """Keeps the checked records of `annotations`: of large files in one file of the machine, which all processes map
    into memory, made in a process of its own (see data_modules/containers/offset_index.py); of small ones in memory.

    Contract: reading leaves nothing behind but entries, `skipped` and `changed`.

    Args:
        annotations: the file; relative to the working folder.
        images: the folder that the records' image names are relative to.
        bad_records: what to do about a record that breaks a rule: stop, or leave it out and keep the sentence about it
            in `skipped`. In training it also holds for what is found out about a sample when it is encoded, such as a
            truncated image (see TrainingSamples).
    """

    def __init__(self, annotations: str, images: str, bad_records: BadRecords = "refuse") -> None:
        if bad_records not in get_args(BadRecords):
            raise ValueError(f"bad_records: found {bad_records!r}, expected 'refuse' or 'skip'")
        self.annotations, self.images, self.bad_records = str(annotations), str(images), bad_records
        self.skipped: list[str] = []
        """One sentence for each record that was left out."""
        self.changed: Counter[str] = Counter()
        """Of the records that are read otherwise than they are written: how, and how many."""
        self._folder = image_folder(self.images)
        self._entries: Packed | None = None
        self._places: Packed | None = None
        self._words = self._has_image = np.zeros(0)

    @abstractmethod
    def _read(self) -> Iterator[Entry]:
        """Reads and checks the records."""

    def _bad(self, error: ValueError) -> None:
        """What happens to a record that broke a rule."""
        if self.bad_records == "refuse":
            raise error from None
        self.skipped.append(str(error))

    def load(self) -> None:
        if self._entries is not None:
            return
        large = self.given_bytes() >= CACHED_FROM
        key = key_of("entries", self.settings_key()) if large else ""
        found = built(key, [large], self._found, kept=large, valid=lambda found: still(found["states"]))
        self.skipped += texts_in(found["skipped"])[len(self.skipped) :]
        self.changed = Counter(json.loads(texts_in(found["changed"])[0]))
        if not len(found["words"]):
            left_out = f" ({len(self.skipped)} left out, first: {self.skipped[0]})" if self.skipped else ""
            raise ValueError(f"{self.annotations}: found no usable record, expected at least one{left_out}")
        self._entries = Packed(found["entries"], found["entries_ends"])
        self._places = Packed(found["places"], found["places_ends"])
        self._words, self._has_image = found["words"], found["images"]

    def _found(self, large: bool) -> Arrays:
        """The checked records, as arrays; of large files also what they depend on."""
        words, has_image, places = array("l"), bytearray(), list[bytes]()

        def values() -> Iterator[bytes]:
            for entry in self._read():
                try:
                    value = packed(entry.value)
                except UnicodeEncodeError as error:
                    half = f"found half of a character ({error.object[error.start]!a}), expected whole ones"
                    self._bad(ValueError(f"{located(self._asked_in, entry.place)}: {half}"))
                    continue
                words.append(entry.words)
                has_image.append(entry.image)
                places.append(packed(entry.place))
                yield value

        with files_looked_at() as files:
            entries = Packed.of(values())
        return {
            "words": np.array(words, dtype=np.int64),
            "images": np.frombuffer(has_image, dtype=np.uint8),
            **entries.arrays("entries"),
            **Packed.of(places).arrays("places"),
            "skipped": texts(self.skipped),
            "changed": texts([json.dumps(self.changed)]),
            "states": states(files, self._folder.listed) if large else texts([]),
        }

    def _entry(self, index: int) -> Any:
        assert self._entries is not None, "call load first"
        return self._entries[index]

    @property
    def _asked_in(self) -> str:
        """The file that the records' places are in."""
        return self.annotations

    def where(self, index: int) -> str:
        assert self._places is not None, "call load first"
        return located(self._asked_in, self._places[index])

    def _images(self, *names: str, size: Sequence[int] = ()) -> tuple[ImageRef, ...]:
        """Images by name, all of `size` (width, height) where the annotations say so."""
        told = (size[0], size[1]) if size else None
        return tuple(image_at(self._folder, name, told) for name in names)

    def __len__(self) -> int:
        assert self._entries is not None, "call load first"
        return len(self._entries)

    def length(self, index: int) -> int:
        return int(self._words[index])

    def has_image(self, index: int) -> bool:
        return bool(self._has_image[index])
