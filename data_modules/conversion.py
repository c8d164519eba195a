"""Conversations of one dialect and file written as those of another: each record is read back before it is kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal, NoReturn

from data_modules.containers import Records
from data_modules.containers.tar import Tars
from data_modules.dialects import Dialect
from data_modules.dialects.conversation import Conversation, Picture
from data_modules.dialects.fields import suffix_of
from data_modules.dialects.rules import Rules, ruled
from data_modules.record_writers import key_of
from data_modules.sources.any_conversations import FILE_URL, check_picture, image_of
from data_modules.sources.records import ImageFolder, Record, RecordError, refused
from lightning_mllm.contracts import ImageRef

MAX_IMAGE = 1 << 30
"""Bytes of a picture that is copied."""
Place = Literal["url", "cell", "member", "file"]
"""Where a picture's bytes go: into the record as a data URL, into the cell of a table, into the tar beside the record,
or into a file, of which the record has the name."""


@dataclass
class Conversion:
    """What is read, and how it is written.

    Args:
        records, source: what is read, and how errors call it.
        read_as, write_as: the dialects.
        folder: where named pictures are; without a root they are not read, and only their names are written.
        rules: that conversations keep.
        place: where pictures go.
        lossy: whether a record is written without what the other dialect cannot say; otherwise it is an error.
    """

    records: Records
    source: str
    read_as: Dialect
    write_as: Dialect
    folder: ImageFolder
    rules: Rules
    place: Place
    lossy: bool = False
    kinds: dict[str, int] = field(default_factory=dict)
    """How images are told, 'held' by records or 'named', and the first record that does so."""
    changed: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    dropped: set[str] = field(default_factory=set)
    """Keys that are not written."""
    ids_as_text: bool = False
    _stored: tuple[int, Mapping[str, ImageRef]] = -1, MappingProxyType({})

    def read(self, number: int) -> Conversation:
        """The conversation of a record.

        Raises:
            ValueError: names the record and the rule that it breaks.
        """
        record: object = None
        try:
            record = self.records[number]
            changed: list[str] = []
            conversation = ruled(self.read_as.read(record), self.rules, changed)
            for picture in conversation.images:
                if self._readable(picture, self._beside(number)) or self.place == "member":
                    check_picture(picture, self._beside(number), self.folder)
        except RecordError as rule:
            record = rule.record if record is None else record
            self._refuse(number, record, f"read as {self.read_as.name}: {rule}")
        self.changed.update(changed)
        return conversation

    @contextmanager
    def naming(self, number: int, record: Record) -> Iterator[None]:
        """Where a value cannot be written, the record is named."""
        try:
            yield
        except (TypeError, ValueError, OverflowError) as error:
            self._refuse(number, record, f"cannot be written ({str(error).splitlines()[0]})")

    def fit(self, mixed: Mapping[str, str]) -> None:
        """Says what is done about columns that have no one type: ids become texts, other keys are left out if lossy.

        Raises:
            ValueError: such a key, where nothing may be lost.
        """
        for key, why in mixed.items():
            if key == "id":
                self.ids_as_text = True
            elif key not in self.write_as.keys and self.lossy:
                self.dropped.add(key)
                self.lost[f"its key '{key}'"] += len(self.records)
            else:
                hint = "" if key in self.write_as.keys else "; --lossy leaves the key out"
                raise ValueError(
                    f"{self.source}: '{key}' cannot be a column of a table ({why}), expected values of one type{hint}"
                )

    def _refuse(self, number: int, record: object, rule: object) -> NoReturn:
        raise refused(self.source, self.records.place(number), record, rule) from None

    def _beside(self, number: int) -> Mapping[str, ImageRef]:
        """The pictures that are stored with a record; it is asked for them again and again."""
        if self._stored[0] != number:
            self._stored = number, self.records.images(number)
        return self._stored[1]

    def _readable(self, picture: Picture, beside: Mapping[str, ImageRef]) -> bool:
        return picture.data is not None or picture.name in beside or bool(self.folder.root)

    def written(
        self, number: int, conversation: Conversation, *, pixels: bool = True
    ) -> tuple[Record, dict[str, bytes]]:
        """The record of a conversation, and the pictures that are stored beside it, by name.

        Args:
            pixels: whether pictures are read; otherwise they are empty.

        Raises:
            ValueError: names the record of which something would be lost, or a picture that cannot be read.
        """
        losses = [f"the key '{key}' of a turn" for key in conversation.unread]
        placed, files = self._placed(number, self._cleaned(number, conversation), pixels)
        record = self.write_as.write(placed)
        if self.place == "cell" and "image" in record and not isinstance(record["image"], list):
            record["image"] = [record["image"]]  # a column is of one type
        if pixels:
            used = {picture.name for picture in conversation.images}
            losses += [f"the picture '{name}'" for name in self._beside(number) if name not in used]
            losses += self._lost(placed, record)
            if losses and not self.lossy:
                rule = f"{self.write_as.name} cannot say {losses[0]}; --lossy writes the record without it"
                self._refuse(number, {"id": conversation.id}, rule)
            self.lost.update(losses)
        return record, files

    def _cleaned(self, number: int, conversation: Conversation) -> Conversation:
        """Without what is not to be written."""
        extra = {key: value for key, value in conversation.extra.items() if key not in self.dropped}
        if isinstance(self.records, Tars) and self.records.place(number).endswith(f": {extra.get('key')}"):
            del extra["key"]
        id = str(conversation.id) if self.ids_as_text and conversation.id is not None else conversation.id
        return replace(conversation, extra=extra, id=id)

    def _placed(self, number: int, conversation: Conversation, pixels: bool) -> tuple[Conversation, dict[str, bytes]]:
        """The conversation with its pictures as they are written, and those that are stored beside it."""
        beside, images, files = self._beside(number), list[Picture](), dict[str, bytes]()
        for k, picture in enumerate(conversation.images):
            name = picture.name
            if name is not None and name.startswith(FILE_URL):
                name = f"file://{name.removeprefix(FILE_URL)}"
            held = picture.data is not None or picture.name in beside
            self._check_kind("held" if held else "named", number)
            if not (held or (self.place != "file" and self.folder.root)):
                images.append(Picture(name))
                continue
            data = self._bytes(picture, beside, number, k) if pixels else b""
            if self.place in ("url", "cell"):
                kept = None if self.place == "url" or picture.name in beside else name
                images.append(Picture(kept, data))
                self.lost["names of images"] += pixels and kept is None and not held
                continue
            stem, dot = key_of(number), "." if self.place == "member" else "_"
            stem += f"{dot}{k}" if len(conversation.images) > 1 else ""
            name = f"{stem}.{suffix_of(data).replace('jpeg', 'jpg')}"
            images.append(Picture(name))
            files[name] = data
            self.lost["names of images"] += pixels and not held
        return replace(conversation, images=tuple(images)), files

    def _check_kind(self, kind: str, number: int) -> None:
        """Names in a file of JSON are all of one folder; ValueError where they are of two."""
        self.kinds.setdefault(kind, number)
        if self.place != "file" or len(self.kinds) == 1:
            return
        other = self.records.place(self.kinds["named" if kind == "held" else "held"])
        found = f"holds an image, and {other} names one" if kind == "held" else f"names an image, and {other} holds one"
        self._refuse(number, None, f"{found}, expected names alone or none; .tar and .parquet take both")

    def _bytes(self, picture: Picture, beside: Mapping[str, ImageRef], number: int, k: int) -> bytes:
        try:
            return image_of(picture, beside, self.folder, f"image {k}").read(MAX_IMAGE)
        except ValueError as error:
            self._refuse(number, None, error)

    def _lost(self, given: Conversation, record: Record) -> list[str]:
        """What a record does not say of the conversation that it was written of."""
        try:
            back = self.write_as.read(record)
        except RecordError as rule:
            return [f"the record so that it can be read again ({rule})"]
        lost = list[str]()
        if [turn[:2] for turn in given.turns] != [turn[:2] for turn in back.turns]:
            lost.append("its turns")
        elif given.turns != back.turns:
            lost.append("that a turn is not learned")
        if [_shown(each) for each in given.images] != [_shown(each) for each in back.images]:
            lost.append("its images")
        lost += [f"its {name}" for name in ("id", "objects") if getattr(given, name) != getattr(back, name)]
        return lost + [f"its key '{key}'" for key in given.extra if back.extra.get(key) != given.extra[key]]


def _shown(picture: Picture) -> str | bytes | None:
    return picture.name if picture.data is None else picture.data
