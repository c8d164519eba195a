"""Conversations in any dialect, in any file of records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch

from data_modules.containers import Records
from data_modules.dialects import LOOKED_AT, Dialect, detected, named
from data_modules.dialects.conversation import Conversation, Picture, Utterance, spoken
from data_modules.dialects.objects import told
from data_modules.dialects.rules import REFUSE, ruled, rules_of
from data_modules.sources.record_source import Checked, RecordSource
from data_modules.sources.records import ImageFolder, RecordError, refused
from data_modules.sources.source import BadRecords
from lightning_mllm.boxes import FRAMES, Frame
from lightning_mllm.boxes import named as spelled
from lightning_mllm.contracts import IMAGE_MARK, LITERAL_MARK, ImageFile, ImageRef, Sample, Turn

Ids = Literal["numbered", "unique"]
FILE_URL = "file:"
KEPT = ("number", "words", "image", "id", "images")
"""What is kept of each record (see RecordSource)."""


@dataclass(frozen=True)
class ImageInRecord:
    """An image that a record holds."""

    name: str
    data: bytes

    def read(self, max_bytes: int) -> bytes:
        """As `ImageRef`."""
        if len(self.data) > max_bytes:
            raise ValueError(f"{self.name}: found {len(self.data)} bytes, expected at most {max_bytes}")
        return self.data


class Conversations(RecordSource):
    r"""Conversations of files in one of the dialects of `docs/formats.md`, which is detected where none is named.

    Blanks around a turn are left out; the last answer is the reference. `\<image>` in a text is the words `<image>`.

    Args:
        annotations: a file, a pattern or a list of them: a JSON list, lines of JSON, parquet, a folder of `datasets`,
            webdataset tars (see `open_records`).
        images: the folder that image names are relative to; empty where records or tars hold their images.
        dialect: by its name; empty to look at some records.
        turns: 'refuse', or what is done to turns that break a rule: a repair of `dialects/rules.py`, or several.
        marks: 'given'; 'front' puts missing image marks in front of the first user turn; 'words' takes marks for words
            in answers, and in records without images.
        ids: 'numbered' makes the second use of an id `id#2`, and counts it; 'unique' takes it for a bad record.
        frame: what coordinates are shares of, those that stand in the texts and those told of `objects`.
        boxes: how `objects` are spelled in place of `<bbox>`: 'llava', 'cogvlm' or 'ferret'; empty where none are.
        bad_records: as in RecordSource: 'refuse' or 'skip'.
    """

    def __init__(
        self,
        annotations: str | list[str],
        images: str = "",
        dialect: str = "",
        turns: str | list[str] = REFUSE,
        marks: str = "given",
        ids: Ids = "numbered",
        frame: Frame | None = None,
        boxes: str = "",
        bad_records: BadRecords = "refuse",
    ) -> None:
        super().__init__(annotations, images, bad_records)
        if frame not in (None, *FRAMES):
            raise ValueError(f"frame: found {frame!r}, expected {' or '.join(map(repr, FRAMES))}")
        if ids not in get_args(Ids):
            raise ValueError(f"ids: found {ids!r}, expected 'numbered' or 'unique'")
        if boxes:
            spelled(boxes)
        self.dialect = named(dialect) if dialect else None
        self.frame, self.boxes, self.ids = frame, boxes, ids
        self.rules = rules_of(turns, marks)

    @cached_property
    def found(self) -> Dialect:
        """The dialect that the records are in.

        Raises:
            ValueError: none is named, and the records are in none or in several.
        """
        assert self._records is not None, "call load first"
        return self.dialect or dialect_of(self.annotations, self._records)

    def _check(self, record: object, place: str, stored: Mapping[str, ImageRef]) -> Checked:
        changed: list[str] = []
        try:
            conversation = self._conversation(record, changed)
            for picture in conversation.images:
                check_picture(picture, stored, self._folder)
        except RecordError as rule:
            raise rule if self.dialect else RecordError(f"read as {self.found.name}: {rule}") from None
        words = sum(len(turn.text.split()) for turn in conversation.turns)
        names = [picture.name for picture in conversation.images]
        named = [f"{place}/{name}" if name is None or name in stored else name for name in names]
        return Checked(words, bool(conversation.images), _id(conversation, place), changed, named)

    def _conversation(self, record: object, changed: list[str]) -> Conversation:
        """The conversation of a record; RecordError if it breaks a rule."""
        return told(ruled(self.found.read(record), self.rules, changed), self.boxes, self.frame)

    def load(self) -> None:
        if self._records is not None:
            return
        super().load()
        if (again := np.flatnonzero(self._repeats)).size and self.ids == "unique":
            self._leave_out(again)
        elif again.size:
            self.changed = {**self.changed, "id used again": int(again.size)}

    def _leave_out(self, again: np.ndarray) -> None:
        """Records with an id that an earlier one has are bad."""
        ids, skipped = self._found["id"], list[str]()
        firsts = dict(zip(*(each.tolist() for each in np.unique(ids, return_index=True)), strict=True))
        for index in again.tolist():
            first = firsts[int(ids[index])]
            record = self._read(index)[0]
            content = "the same" if record == self._read(first)[0] else "other"
            rule = f"has the id of {self.where(first)}, and {content} content, expected an id of its own"
            error = refused(self.where(index), "", record, rule)
            if self.bad_records == "refuse":
                self._records = None
                raise error
            skipped.append(str(error))
        keep = self._repeats == 0
        self._found = {name: array[keep] if name in KEPT else array for name, array in self._found.items()}
        self._repeats = np.zeros(0, dtype=np.int32)
        self.skipped = [*self.skipped, *skipped]

    def sample(self, index: int, generator: torch.Generator) -> Sample:
        assert self._records is not None, "call load first"
        record, stored = self._read(index)
        conversation = self._conversation(record, [])
        place = self._records.place(int(self._found["number"][index]))
        turns = tuple(map(turn_of, conversation.turns))
        return Sample(
            id=self.unique(index, _id(conversation, place)),
            turns=turns,
            images=tuple(
                image_of(picture, stored, self._folder, f"{self.where(index)}, image {k}")
                for k, picture in enumerate(conversation.images)
            ),
            references=(turns[-1].text,),
            task="conversation",
        )


def _id(conversation: Conversation, place: str) -> str:
    return str(place.lstrip(":") if conversation.id is None else conversation.id)


def dialect_of(source: object, records: Records) -> Dialect:
    """The dialect that the records of a file are in, by some that are spread over it.

    Raises:
        ValueError: names the file, the keys that were found and the dialects that there are.
    """
    step = max(len(records) // LOOKED_AT, 1)
    some: list[object] = []
    for number in range(0, len(records), step)[:LOOKED_AT]:
        try:
            some.append(records[number])
        except RecordError:
            continue
    try:
        return detected(some)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def turn_of(said: Utterance) -> Turn:
    """A turn as processors read it, without the blanks around it."""
    text = said.text.strip()
    if said.role == "user" and IMAGE_MARK in text:
        return Turn(role=said.role, text=text)
    return Turn(role=said.role, text=spoken(text), literal=LITERAL_MARK in text, learn=said.learn)


def check_picture(picture: Picture, beside: Mapping[str, ImageRef], folder: ImageFolder) -> None:
    """Whether there is such a picture; RecordError otherwise."""
    if picture.data is None and picture.name not in beside:
        folder.check(_relative(picture, folder))


def image_of(picture: Picture, beside: Mapping[str, ImageRef], folder: ImageFolder, name: str) -> ImageRef:
    """The picture, unread.

    Args:
        beside: those that are stored with the record.
        name: of one that the record holds.
    """
    if picture.data is not None:
        return ImageInRecord(name, picture.data)
    assert picture.name is not None
    return beside[picture.name] if picture.name in beside else ImageFile(folder.path(_relative(picture, folder)))


def _relative(picture: Picture, folder: ImageFolder) -> str:
    """The name of a picture relative to the folder; RecordError for a file URL that leads elsewhere."""
    assert picture.name is not None
    if not picture.name.startswith(FILE_URL):
        return picture.name
    path = Path(picture.name.removeprefix(FILE_URL))
    if not folder.root:
        raise RecordError(f"names the image 'file://{path}', expected none because no images folder is given")
    try:
        return str(path.relative_to(Path(folder.root).absolute()))
    except ValueError:
        raise RecordError(f"image is 'file://{path}', expected a path inside {folder.root}") from None
