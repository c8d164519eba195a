"""Conversations about images, and about nothing to see, in the JSON of LLaVA (arXiv 2304.08485, released data)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, get_args

import torch

from data_modules.sources.record_source import Checked, RecordSource
from data_modules.sources.records import MAX_TEXT, RecordError, field, text_of
from data_modules.sources.source import BadRecords, Published
from lightning_mllm.boxes import FRAMES, Frame
from lightning_mllm.contracts import IMAGE_MARK, ImageRef, Role, Sample, Turn

ROLES: dict[str, Role] = {"human": "user", "gpt": "assistant", "system": "system"}
NAMES = {role: name for name, role in ROLES.items()}

Records = Literal["strict", "published"]
Marks = Literal["given", "front"]
Turns = list[tuple[Role, str]]


class LlavaConversations(RecordSource):
    """A .json list, or .jsonl lines, of conversations; text-only ones have no `image`.

        {"id", "image": "a/b.jpg", "conversations": [{"from": "human", "value": "<image>\\n..."}, {"from": "gpt", ...}]}
        {"id", "text"}                                    a document: one assistant turn, all of it learned

    `image` may be a list of names; the human turns must hold as many `<image>` marks as there are images. After an
    optional system turn, human and gpt alternate, human first and gpt last; the last answer is the reference. Released
    files use an id for several records: its second use becomes `id#2`, or the next number that no record has yet.

    `records: published` reads them as LLaVA does (haotian-liu/LLaVA, llava/train/train.py: preprocess_multimodal,
    preprocess_v1, LazySupervisedDataset), and counts what it changes:

        a first turn of gpt                 is left out
        blanks around a turn                are kept, but in a turn with an image mark (there the template strips)
        several marks in a turn             are one, where `image` is one name
        an image without a mark             is not shown
        marks in a record without images    are words
        no text, or no answer at the end    is kept: a template's `round_marks` say what is then learned

    Turns that do not alternate and unknown roles stop that code; here they are bad records.

    Args:
        annotations: the file.
        images: the folder that image names are relative to; empty for text alone.
        records: 'strict', or 'published' for LLaVA's own reading.
        frame: what coordinates in the texts are shares of (see BoxSource); None where there are none.
        marks: 'given', or 'front' to put missing image marks in front of the first human turn.
        bad_records: as in FileSource: 'refuse' or 'skip'.
    """

    published: ClassVar[tuple[Published, ...]] = tuple(
        Published(
            title=f"LLaVA-Instruct {title}",
            paper="2304.08485",
            family="",
            tasks=(),
            held_in=True,
            files=(file,),
        )
        for title, file in (
            ("detail", "detail_23k.json"),
            ("reasoning", "complex_reasoning_77k.json"),
            ("conversation", "conversation_58k.json"),
        )
    )

    def __init__(
        self,
        annotations: str,
        images: str = "",
        records: Records = "strict",
        marks: Marks = "given",
        frame: Frame | None = None,
        bad_records: BadRecords = "refuse",
    ) -> None:
        super().__init__(annotations, images, bad_records)
        if frame not in (None, *FRAMES):
            raise ValueError(f"frame: found {frame!r}, expected {' or '.join(map(repr, FRAMES))}")
        self.frame = frame
        if records not in get_args(Records):
            raise ValueError(f"records: found {records!r}, expected 'strict' or 'published'")
        if marks not in get_args(Marks):
            raise ValueError(f"marks: found {marks!r}, expected 'given' or 'front'")
        self.records: Records = records
        self.marks: Marks = marks

    def _check(self, record: object, place: str, stored: Mapping[str, ImageRef]) -> Checked:
        changed: list[str] = []
        images, turns = self._checked(record, changed)
        assert isinstance(record, dict), "others break a rule"
        for name in images:
            if name not in stored:
                self._folder.check(name)
        id = str(record.get("id", place.lstrip(":")))
        words = sum(len(text.split()) for _, text in turns)
        names = [f"{place}/{name}" if name in stored else name for name in images]  # each record stores its own
        return Checked(words, bool(images), id, changed, names)

    def _checked(self, record: object, changed: list[str]) -> tuple[list[str], Turns]:
        """Image names and turns of a record that keeps the rules; RecordError otherwise.

        What is read otherwise than it is written is added to `changed`.
        """
        if isinstance(record, dict) and "conversations" not in record and "text" in record:
            document = text_of(record, "text", MAX_TEXT)
            if IMAGE_MARK in document:
                raise RecordError(f"a document has {document.count(IMAGE_MARK)} {IMAGE_MARK} marks, expected 0")
            return [], [("assistant", document)]
        given = [] if record_image(record) is None else field(record, "image", str, list)
        images = [given] if isinstance(given, str) else given
        if odd := [name for name in images if not isinstance(name, str)]:
            raise RecordError(f"'image' holds {odd[0]!r}, expected names of files")
        said = _said(field(record, "conversations", list), self.records)
        if self.records == "published":
            images, said = _published(images, said, changed, keep=self.marks == "front")
        turns = _alternating(said, complete=self.records == "strict")
        if images or self.records == "strict":
            turns = self._marked(turns, len(images), changed)
        return images, turns

    def _marked(self, turns: Turns, images: int, changed: list[str]) -> Turns:
        """The turns with a mark for each image; RecordError for others."""
        for place, (role, text) in enumerate(turns):
            if role != "user" and IMAGE_MARK in text:
                raise RecordError(
                    f"turn {place} from {NAMES[role]} has an {IMAGE_MARK} mark, expected them in human turns"
                )
        marks = sum(text.count(IMAGE_MARK) for _, text in turns)
        if marks < images and not marks and self.marks == "front":
            changed.append("marks put in front")
            first = next(k for k, (role, _) in enumerate(turns) if role == "user")
            text = (IMAGE_MARK + "\n") * images + turns[first][1]
            return [*turns[:first], ("user", text), *turns[first + 1 :]]
        if marks != images:
            hint = f"; write {IMAGE_MARK} where an image stands, or set marks: front" if marks < images else ""
            raise RecordError(f"found {marks} {IMAGE_MARK} marks and {images} images, expected as many of each{hint}")
        return turns

    def _again(self, index: int) -> tuple[str, tuple[ImageRef, ...], Turns]:
        """Id, images and turns of sample `index`."""
        record, stored = self._read(index)
        names, turns = self._checked(record, [])
        id = self.unique(index, str(record.get("id", self._place(index).lstrip(":"))))
        return id, tuple(self._image(name, stored) for name in names), turns

    def sample(self, index: int, generator: torch.Generator) -> Sample:
        id, images, turns = self._again(index)
        # A record without images may hold marks only where they are words.
        told = [Turn(role=role, text=text, literal=not images and IMAGE_MARK in text) for role, text in turns]
        answered = len(told) > 1 and told[-1].role == "assistant"
        return Sample(
            id=id,
            turns=tuple(told),
            images=images,
            references=(told[-1].text.strip(),) if answered else (),
            task="conversation",
        )


def record_image(record: object) -> object:
    """What a record says about its images, None where it has none."""
    return record.get("image") if isinstance(record, dict) else None


def _said(records: list[object], how: Records) -> Turns:
    """Role and text of each turn of a record; where the reading is strict no text may be empty, and blanks go."""
    turns: Turns = []
    for place, record in enumerate(records):
        name = field(record, "from", str)
        if name not in ROLES:
            raise RecordError(f"turn {place} is from '{name}', expected human, gpt or system")
        try:
            text = text_of(record, "value", MAX_TEXT) if how == "strict" else field(record, "value", str)
        except RecordError as rule:
            raise RecordError(f"turn {place} from {name}: {rule}") from None
        if len(text) > MAX_TEXT:
            raise RecordError(f"turn {place} from {name} has {len(text)} characters, expected at most {MAX_TEXT}")
        turns.append((ROLES[name], text))
    return turns


def _published(images: list[str], turns: Turns, changed: list[str], *, keep: bool) -> tuple[list[str], Turns]:
    """Images and turns as LLaVA reads them (see LlavaConversations), but to `keep` images without marks."""
    if len(turns) > 1 and turns[0][0] == "assistant":
        changed.append("answer in front left out")
        turns = turns[1:]
    marks = sum(text.count(IMAGE_MARK) for _, text in turns)
    if images and not marks and not keep:
        changed.append("image without a mark")
        images = []
    elif marks and not images:
        changed.append("marks as words")
    if len(images) == 1 and any(text.count(IMAGE_MARK) > 1 for _, text in turns):
        changed.append("marks of a turn as one")
        turns = [(role, _one_mark(text)) for role, text in turns]
    if any(text != text.strip() and not (images and IMAGE_MARK in text) for _, text in turns):
        changed.append("blanks kept")
    if any(not text for _, text in turns) or not turns or turns[-1][0] == "user":
        changed.append("incomplete")
    return images, turns


def _one_mark(text: str) -> str:
    if IMAGE_MARK not in text:
        return text
    return f"{IMAGE_MARK}\n{text.replace(IMAGE_MARK, '').strip()}".strip()


def _alternating(turns: Turns, *, complete: bool) -> Turns:
    """The turns; RecordError where human and gpt do not alternate, or are not `complete` pairs."""
    spoken = turns[1:] if turns and turns[0][0] == "system" else turns
    first = len(turns) - len(spoken)
    for place, (role, _) in enumerate(spoken):
        expected = "human" if place % 2 == 0 else "gpt"
        if role != ROLES[expected]:
            raise RecordError(f"turn {first + place} is from {NAMES[role]}, expected {expected}")
    if not spoken or (complete and len(spoken) % 2):
        raise RecordError(f"found {len(spoken)} turns of human and gpt, expected pairs that end with gpt")
    return turns


class LlavaPretrain(LlavaConversations):
    """The alignment data of LLaVA: [{"id", "image", "conversations": [human request with `<image>`, gpt caption]}].

    Args:
        annotations: the .json or .jsonl file.
        images: the folder that image names are relative to.
        records, marks: as in LlavaConversations.
        bad_records: as in FileSource: 'refuse' or 'skip'.
    """

    captions: ClassVar[bool] = True

    def __init__(
        self,
        annotations: str,
        images: str,
        records: Records = "strict",
        marks: Marks = "given",
        bad_records: BadRecords = "refuse",
    ) -> None:
        super().__init__(annotations, images, records, marks, bad_records=bad_records)

    def _checked(self, record: object, changed: list[str]) -> tuple[list[str], Turns]:
        images, turns = super()._checked(record, changed)
        if len(images) != 1 or len(turns) != 2:
            raise RecordError(
                f"found {len(images)} images and {len(turns)} turns, expected one image, one request and one caption"
            )
        return images, turns

    def sample(self, index: int, generator: torch.Generator) -> Sample:
        id, images, ((_, request), (_, caption)) = self._again(index)
        return Sample(
            id=id,
            turns=(Turn(role="user", text=request), Turn(role="assistant", text=caption)),
            images=images,
            references=(caption.strip(),),
            task="caption",
        )
