"""Conversations about images, and about nothing to see, in the JSON of LLaVA (arXiv 2304.08485, released data)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch

from data_modules.sources.files import BadRecords, Entry, FileSource
from data_modules.sources.records import MAX_TEXT, RecordError, field, parse, records_in, refused, text_of, unique_id
from data_modules.sources.source import Published
from lightning_mllm.contracts import IMAGE_MARK, Role, Sample, Turn

ROLES: dict[str, Role] = {"human": "user", "gpt": "assistant", "system": "system"}


class LlavaConversations(FileSource):
    """A .json list, or .jsonl lines, of conversations; text-only ones have no `image`.

        {"id", "image": "a/b.jpg", "conversations": [{"from": "human", "value": "<image>\\n..."}, {"from": "gpt", ...}]}
        {"id", "text"}                                    a document: one assistant turn, all of it learned

    `image` may be a list of names; the human turns must hold as many `<image>` marks as there are images. After an
    optional system turn, human and gpt alternate, human first and gpt last; the last answer is the reference. Released
    files use an id for several records: its second use becomes `id#2`, or the next number that no record has yet.

    Args:
        annotations: the file.
        images: the folder that image names are relative to; empty for text alone.
        bad_records: as in FileSource: 'refuse' or 'skip'.
    """

    published: ClassVar[tuple[Published, ...]] = tuple(
        Published(
            title=f"LLaVA-Instruct {title}",
            paper="2304.08485",
            family="",
            tasks=("conversation",),
            held_in=True,
            files=(file,),
        )
        for title, file in (
            ("detail", "detail_23k.json"),
            ("reasoning", "complex_reasoning_77k.json"),
            ("conversation", "conversation_58k.json"),
        )
    )

    def __init__(self, annotations: str, images: str = "", bad_records: BadRecords = "refuse") -> None:
        super().__init__(annotations, images, bad_records)

    def _read(self) -> Iterator[Entry]:
        known: dict[str, int] = {}
        for place, record in records_in(self.annotations):
            try:
                record = parse(record) if isinstance(record, bytes) else record
                images, turns = self._checked(record)
            except RecordError as rule:
                self._bad(refused(self.annotations, place, record, rule))
                continue
            id = str(record.get("id", place.lstrip(":")))
            words = sum(len(text.split()) for _, text in turns)
            yield Entry(words, bool(images), [unique_id(id, known), images, turns])

    def _checked(self, record: Any) -> tuple[list[str], list[tuple[Role, str]]]:
        """Image names and turns of a record that keeps the rules; RecordError otherwise."""
        if isinstance(record, dict) and "conversations" not in record and "text" in record:
            document = text_of(record, "text", MAX_TEXT)
            if IMAGE_MARK in document:
                raise RecordError(f"a document has {document.count(IMAGE_MARK)} {IMAGE_MARK} marks, expected 0")
            return [], [("assistant", document)]
        turns = _turns(field(record, "conversations", list))
        given = [] if record.get("image") is None else field(record, "image", str, list)
        images = [given] if isinstance(given, str) else given
        if odd := [name for name in images if not isinstance(name, str)]:
            raise RecordError(f"'image' holds {odd[0]!r}, expected names of files")
        marks = sum(text.count(IMAGE_MARK) for _, text in turns)
        if marks != len(images):
            raise RecordError(f"found {marks} {IMAGE_MARK} marks and {len(images)} images, expected as many of each")
        for name in images:
            self._folder.check(name)
        return images, turns

    def sample(self, index: int, generator: torch.Generator) -> Sample:
        id, images, turns = self._entry(index)
        turns = tuple(Turn(role=role, text=text) for role, text in turns)
        return Sample(
            id=id,
            turns=turns,
            images=self._images(*images),
            references=(turns[-1].text,) if len(turns) > 1 else (),
            task="conversation",
        )


def _turns(records: list[Any]) -> list[tuple[Role, str]]:
    turns: list[tuple[Role, str]] = []
    for place, record in enumerate(records):
        name = field(record, "from", str)
        if name not in ROLES:
            raise RecordError(f"turn {place} is from '{name}', expected human, gpt or system")
        try:
            text = text_of(record, "value", MAX_TEXT)
        except RecordError as rule:
            raise RecordError(f"turn {place} from {name}: {rule}") from None
        turns.append((ROLES[name], text))
        if name != "human" and IMAGE_MARK in text:
            raise RecordError(f"turn {place} from {name} has an {IMAGE_MARK} mark, expected them in human turns")
    spoken = turns[1:] if turns and turns[0][0] == "system" else turns
    first = len(turns) - len(spoken)
    for place, (role, _) in enumerate(spoken):
        expected = "human" if place % 2 == 0 else "gpt"
        if role != ROLES[expected]:
            raise RecordError(f"turn {first + place} is from {records[first + place]['from']}, expected {expected}")
    if not spoken or len(spoken) % 2:
        raise RecordError(f"found {len(spoken)} turns of human and gpt, expected pairs that end with gpt")
    return turns


class LlavaPretrain(LlavaConversations):
    """The alignment data of LLaVA: [{"id", "image", "conversations": [human request with `<image>`, gpt caption]}].

    Args:
        annotations: the .json or .jsonl file.
        images: the folder that image names are relative to.
        bad_records: as in FileSource: 'refuse' or 'skip'.
    """

    captions: ClassVar[bool] = True

    def __init__(self, annotations: str, images: str, bad_records: BadRecords = "refuse") -> None:
        super().__init__(annotations, images, bad_records)

    def _checked(self, record: Any) -> tuple[list[str], list[tuple[Role, str]]]:
        images, turns = super()._checked(record)
        if len(images) != 1 or len(turns) != 2:
            raise RecordError(
                f"found {len(images)} images and {len(turns)} turns, expected one image, one request and one caption"
            )
        return images, turns

    def sample(self, index: int, generator: torch.Generator) -> Sample:
        id, images, ((_, request), (_, caption)) = self._entry(index)
        return Sample(
            id=id,
            turns=(Turn(role="user", text=request), Turn(role="assistant", text=caption)),
            images=self._images(*images),
            references=(caption,),
            task="caption",
        )
