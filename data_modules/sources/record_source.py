"""Sources whose records are found by index and read anew for every sample: no process holds the annotations.

Loading looks at each record once on a machine, in several processes, and keeps a few numbers for it in a file that all
processes map into memory (data_modules/containers/offset_index.py).
"""

from __future__ import annotations

import hashlib
import heapq
import json
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, get_args, overload

import numpy as np
from jaxtyping import Int

from data_modules.containers import Records, open_records
from data_modules.containers.offset_index import CACHED_FROM, Arrays, built, key_of, texts, texts_in
from data_modules.sources.addresses import image_at, image_folder
from data_modules.sources.checked import Given, states, still
from data_modules.sources.records import RecordError, refused
from data_modules.sources.source import BadRecords, Source, key_of_images
from lightning_mllm.contracts import ImageRef

CHUNK = 20_000
"""Records that a process checks at once."""


class Checked(NamedTuple):
    """What is kept of a record that keeps the rules."""

    words: int
    image: bool
    id: str = ""
    """By which records that share one are told apart; or nothing."""
    changed: Sequence[str] = ()
    """How it is read otherwise than it is written (see `Source.changed`)."""
    images: Sequence[str] = ()
    """What its images are called; nothing where no two records show the same, then of all records of the source."""


class Sentences(Sequence[str]):
    """Texts in an array, made when they are asked for."""

    def __init__(self, array: np.ndarray) -> None:
        self._array, self._ends = array, np.flatnonzero(np.asarray(array) == 0)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        k = range(len(self))[index]
        begin = int(self._ends[k - 1]) + 1 if k else 0
        return self._array[begin : int(self._ends[k])].tobytes().decode()


class RecordSource(Given, Source):
    """The records of files that `open_records` reads.

    Args:
        annotations: what `open_records` takes: a file, a pattern or a list of them.
        images: the folder that the records' image names are relative to; empty where pictures are stored with the
            records.
        bad_records: 'refuse' or 'skip', as in FileSource; with 'skip' a file that is cut off gives the records before
            the cut.
    """

    key: str = "id"
    """Under which name a record keeps its id; for error messages."""

    def __init__(self, annotations: str | list[str], images: str = "", bad_records: BadRecords = "refuse") -> None:
        if bad_records not in get_args(BadRecords):
            raise ValueError(f"bad_records: found {bad_records!r}, expected 'refuse' or 'skip'")
        self.annotations, self.images, self.bad_records = annotations, str(images), bad_records
        self.skipped: Sequence[str] = ()
        """One sentence for each record, or end of a file, that was left out."""
        self._folder = image_folder(self.images)
        self._records: Records | None = None
        self._found: Arrays = {}

    @abstractmethod
    def _check(self, record: object, place: str, stored: Mapping[str, ImageRef]) -> Checked:
        """What is kept of a record; RecordError if it breaks a rule.

        Args:
            record: as `Records` gives it.
            place: of the record, as `refused` takes it.
            stored: the pictures stored with it.
        """

    # ---- loading -----------------------------------------------------------------------------------------------

    def load(self) -> None:
        if self._records is not None:
            return
        records = open_records(self.annotations, "use" if self.bad_records == "skip" else "refuse")
        chunks = [range(first, min(first + CHUNK, len(records))) for first in range(0, len(records), CHUNK)]
        key = key_of("checked", self.settings_key(), records.key, CHUNK)
        large = len(chunks) > 1 or sum(path.stat().st_size for path in records.paths) >= CACHED_FROM
        self._records = records
        try:
            found = built(key, chunks, self._check_all, kept=large, valid=lambda found: still(found["states"]))
            left_out = Sentences(found["skipped"]) if chunks else ()
            self.skipped = [*records.left_out, *left_out] if records.left_out else left_out
            if not chunks or not len(found["number"]):
                first = f" ({len(self.skipped)} left out, first: {self.skipped[0]})" if self.skipped else ""
                raise ValueError(f"{self.annotations}: found no usable record, expected at least one{first}")
            self._found = found
            state = hashlib.blake2b(found["states"].tobytes()).hexdigest()  # of the folders, by which records are kept
            self._repeats = built(key_of("repeats", key, state), [0], self._repeated, kept=large)["repeat"]
        except BaseException:
            self._records = None
            raise
        changed = Counter[str]()
        for each in texts_in(found["changed"]):
            changed.update(json.loads(each))
        self.changed = changed

    def _check_all(self, chunk: range) -> Arrays:
        """What is kept of some records."""
        assert self._records is not None
        numbers, kept, skipped, changed = list[int](), list[Checked](), list[str](), Counter[str]()
        for index in chunk:
            record: object = None
            place = self._records.place(index)
            try:
                record = self._records[index]
                checked = self._check(record, place, self._records.images(index))
                _whole(record)
            except RecordError as rule:
                error = refused(self._records.where(index), "", record, rule, self.key)
                if self.bad_records == "refuse":
                    raise error from None
                skipped.append(str(error))
                continue
            numbers.append(index)
            kept.append(checked)
            changed.update(checked.changed)
        ids = [_digest(each.id) for each in kept] if any(each.id for each in kept) else []
        return {
            "number": np.array(numbers, dtype=np.int64),
            "words": np.array([each.words for each in kept], dtype=np.int32),
            "image": np.array([each.image for each in kept], dtype=bool),
            "id": np.array(ids, dtype=np.uint64),
            "images": self._image_keys(kept),
            "skipped": texts(skipped),
            "changed": texts([json.dumps(changed)] if changed else []),
            "states": states([], self._folder.listed),
        }

    def _image_keys(self, kept: Sequence[Checked]) -> Int[np.ndarray, " N"]:
        """Of each record, -1 for one without images; empty where no two records show the same."""
        if all(each.image and not each.images for each in kept):
            return np.zeros(0, dtype=np.int64)
        keys = (key_of_images(self.images, each.images) for each in kept)
        return np.array([-1 if key is None else key for key in keys], dtype=np.int64)

    def _repeated(self, _: int) -> Arrays:
        """Of each record whose id another one has before it the number behind its own, as `unique_id` gives them out;
        empty where there is none."""
        ids = self._found["id"]
        known, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
        if len(known) == len(ids):
            return {"repeat": np.zeros(0, dtype=np.int32)}
        repeat, given, counts = np.zeros(len(ids), dtype=np.int32), set[int](), Counter[int]()
        again = np.flatnonzero(first[inverse] != np.arange(len(ids))).tolist()  # sorted, which is a heap
        while again:
            index = heapq.heappop(again)
            id, own = self._id(index), int(inverse[index])
            while True:
                counts[own] += 1
                digest = _digest(f"{id}#{counts[own] + 1}")
                place = int(np.searchsorted(known, np.uint64(digest)))
                there = place < len(known) and int(known[place]) == digest
                if digest not in given and not (there and first[place] < index):
                    break
            given.add(digest)
            repeat[index] = counts[own] + 1
            if there:
                heapq.heappush(again, int(first[place]))
        return {"repeat": repeat}

    def _id(self, index: int) -> str:
        """What `_check` calls a record."""
        record, stored = self._read(index)
        return self._check(record, self._place(index), stored).id

    # ---- samples -----------------------------------------------------------------------------------------------

    def _read(self, index: int) -> tuple[Any, Mapping[str, ImageRef]]:
        """The record of sample `index`, parsed anew, and the pictures stored with it."""
        assert self._records is not None, "call load first"
        number = int(self._found["number"][index])
        return self._records[number], self._records.images(number)

    def _place(self, index: int) -> str:
        """Of the record of sample `index`, as `refused` takes it."""
        assert self._records is not None, "call load first"
        return self._records.place(int(self._found["number"][index]))

    def unique(self, index: int, id: str) -> str:
        """`id`, or `id#2` where another record had it before."""
        number = int(self._repeats[index]) if len(self._repeats) else 0
        return f"{id}#{number}" if number else id

    def _image(self, name: str, stored: Mapping[str, ImageRef]) -> ImageRef:
        """The picture that a record calls so: one that is stored with it, or a file of the folder."""
        return stored[name] if name in stored else image_at(self._folder, name)

    def __len__(self) -> int:
        assert self._records is not None, "call load first"
        return len(self._found["number"])

    def length(self, index: int) -> int:
        return int(self._found["words"][index])

    def has_image(self, index: int) -> bool:
        return bool(self._found["image"][index])

    def image_key(self, index: int) -> int | None:
        key = int(self._found["images"][index]) if len(self._found["images"]) else -1
        return None if key < 0 else key

    def where(self, index: int) -> str:
        assert self._records is not None, "call load first"
        return self._records.where(int(self._found["number"][index]))

    def runs(self) -> Int[np.ndarray, " R"]:
        """How many samples after one another are read at the cost of one (see `Records.runs`)."""
        assert self._records is not None, "call load first"
        borders = np.cumsum(self._records.runs())
        ends = np.searchsorted(self._found["number"], borders)
        runs = np.diff(ends, prepend=0)
        return runs[runs > 0]


def _whole(record: object) -> None:
    """RecordError where a text has half of a surrogate pair."""
    try:
        json.dumps(record, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        raise RecordError(f"found half of a character ({error.object[error.start]!a}), expected whole ones") from None


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
