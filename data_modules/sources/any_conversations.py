"""Conversations in any dialect, in any file of records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch

from data_modules.containers import Records, open_records
from data_modules.dialects import LOOKED_AT, Dialect, detected, named
from data_modules.dialects.conversation import Conversation, Picture, Utterance, spoken
from data_modules.dialects.objects import told
from data_modules.dialects.rules import REFUSE, ruled, rules_of
from data_modules.sources.files import BadRecords, Entry, FileSource
from data_modules.sources.records import ImageFolder, RecordError, refused, unique_id
from lightning_mllm.boxes import FRAMES, Frame
from lightning_mllm.boxes import named as spelled
from lightning_mllm.contracts import IMAGE_MARK, LITERAL_MARK, ImageFile, ImageRef, Sample, Turn

Ids = Literal["numbered", "unique"]
FILE_URL = "file:"


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


class Conversations(FileSource):
    r"""Conversations of files in one of the dialects of `docs/formats.md`, which is detected where none is named.

    Of a record only its number and id are kept; it is read again for each sample. Blanks around a turn are left out,
    and the last answer is the reference. `\<image>` in a text is the words `<image>`.

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
        bad_records: as in FileSource: 'refuse' or 'skip'.
    """

    def __init__(
        self,
        annotations: str | Sequence[str],
        images: str = "",
        dialect: str = "",
        turns: str | Sequence[str] = REFUSE,
        marks: str = "given",
        ids: Ids = "numbered",
        frame: Frame | None = None,
        boxes: str = "",
        bad_records: BadRecords = "refuse",
    ) -> None:
        self.files = [annotations] if isinstance(annotations, str) else list(annotations)
        super().__init__(", ".join(self.files), images, bad_records)
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
    def _records(self) -> Records:
        return open_records(self.files)

    @cached_property
    def found(self) -> Dialect:
        """The dialect that the records are in.

        Raises:
            ValueError: none is named, and the records are in none or in several.
        """
        return self.dialect or dialect_of(self.annotations, self._records)

    def _read(self) -> Iterator[Entry]:
        known: dict[str, int] = {}
        first: dict[str, int] = {}
        for number in range(len(self._records)):
            changed: list[str] = []
            record: object = None
            place = self._records.place(number)
            try:
                record = self._records[number]
                conversation = self._conversation(record, number, changed)
                id = str(place.lstrip(":") if conversation.id is None else conversation.id)
                if id in known:
                    self._used_again(id, first[id], record, changed)
            except RecordError as rule:
                hint = "" if self.dialect else f"read as {self.found.name}: "
                self._bad(refused(self.annotations, place, record, f"{hint}{rule}"))
                continue
            first.setdefault(id, number)
            self.changed.update(changed)
            words = sum(len(turn.text.split()) for turn in conversation.turns)
            yield Entry(words, bool(conversation.images), [unique_id(id, known), number], place)

    def _used_again(self, id: str, first: int, record: object, changed: list[str]) -> None:
        """What happens to the second use of an id."""
        if self.ids == "unique":
            other = "the same" if self._records[first] == record else "other"
            raise RecordError(f"the id {id} is that of {self._records.place(first)} too, with {other} content")
        changed.append("id used again")

    def _conversation(self, record: object, number: int, changed: list[str]) -> Conversation:
        """The conversation of a record that keeps the rules; RecordError otherwise."""
        conversation = told(ruled(self.found.read(record), self.rules, changed), self.boxes, self.frame)
        beside = self._records.images(number) if conversation.images else {}
        for picture in conversation.images:
            check_picture(picture, beside, self._folder)
        return conversation

    def sample(self, index: int, generator: torch.Generator) -> Sample:
        id, number = self._entry(index)
        conversation = self._conversation(self._records[number], number, [])
        beside = self._records.images(number) if conversation.images else {}
        turns = tuple(map(turn_of, conversation.turns))
        return Sample(
            id=id,
            turns=turns,
            images=tuple(
                image_of(picture, beside, self._folder, f"{self._records.where(number)}, image {k}")
                for k, picture in enumerate(conversation.images)
            ),
            references=(turns[-1].text,),
            task="conversation",
        )


def dialect_of(path: str, records: Records) -> Dialect:
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
        raise ValueError(f"{path}: {error}") from None


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
    from pathlib import Path

    path = Path(picture.name.removeprefix(FILE_URL))
    if not folder.root:
        raise RecordError(f"names the image 'file://{path}', expected none because no images folder is given")
    try:
        return str(path.relative_to(Path(folder.root).absolute()))
    except ValueError:
        raise RecordError(f"image is 'file://{path}', expected a path inside {folder.root}") from None
