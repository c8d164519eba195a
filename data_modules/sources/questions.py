"""Everything that is images and a question with answers: one record type, one way to make samples of it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Literal, NamedTuple

import torch

from data_modules.sources.files import BadRecords, Entry, FileSource
from data_modules.sources.records import MAX_TEXT, RecordError, parse, records_in, refused
from data_modules.sources.source import key_of_images
from data_modules.sources.templates import Prompts
from lightning_mllm.contracts import IMAGE_MARK, Sample, Turn

OCR_TOKENS = 30
"""Of an image's OCR tokens so many are told (InstructBLIP, arXiv 2305.06500, appendix)."""

KNOWN = ("question", "statement", "options", "ocr", "history", "context")


class Question(NamedTuple):
    """A record as a subclass of QuestionSource gives it; what is wrong about it is found by the base."""

    id: str
    images: Sequence[str]
    """Names inside the images folder: one, several where they are frames of a video, or none."""
    question: str
    """Or the statement to judge."""
    answer: str
    """What is learned; empty in a set whose answers its authors keep."""
    references: Sequence[str] = ()
    """The accepted answers; several equal ones where several people gave them. Empty for the answer alone."""
    options: Sequence[str] = ()
    """What a multiple choice names."""
    ocr: Sequence[str] = ()
    """What was read in the image; the first 30 are told."""
    history: Sequence[Sequence[str]] = ()
    """Earlier pairs of question and answer."""
    context: str = ""
    """A hint, a lecture, the caption of a dialogue."""
    fields: Mapping[str, str] = {}
    """What else a template of the source may name ('expression', 'box')."""
    candidates: Sequence[str] = ()
    """The closed set of answers, where the published protocol ranks one; of a multiple choice its options."""
    size: Sequence[int] = ()
    """Width and height of the image, in pixels, that boxes and points in the texts are told for."""
    question_type: str = ""
    """As in `Sample`."""

    @property
    def accepted(self) -> tuple[str, ...]:
        return tuple(self.references) or ((self.answer,) if self.answer else ())

    def values(self) -> dict[str, str]:
        """What a template is filled in with."""
        return {
            "question": self.question,
            "statement": self.question,
            "options": " ".join(f"({letter(place)}) {text}" for place, text in enumerate(self.options)),
            "ocr": ", ".join(self.ocr[:OCR_TOKENS]),
            "history": " ".join(f"Question: {question} Answer: {answer}" for question, answer in self.history),
            "context": self.context,
            **self.fields,
        }

    def check(self, asked: bool = True, answered: bool = True) -> None:
        """RecordError for what no format may hold; a record that is not `asked` in its own words has no question, one
        of a set that is not `answered` no answer."""
        for name in [*(["question"] if asked else []), *(["answer"] if answered else [])]:
            if not getattr(self, name).strip():
                raise RecordError(f"the {name} is empty, expected a text")
        pairs = [text for pair in self.history for text in pair]
        texts = [self.question, self.answer, self.context, *self.options, *self.ocr, *pairs, *self.candidates]
        texts += self.fields.values()
        if odd := [text for text in texts if IMAGE_MARK in text]:
            raise RecordError(f"{odd[0]!r} has an {IMAGE_MARK} mark, expected it in the prompt alone")
        if (size := sum(map(len, texts))) > MAX_TEXT:
            raise RecordError(f"has {size} characters of text, expected at most {MAX_TEXT}")
        for name, closed in (("options", self.options), ("candidates", self.candidates)):
            if len(closed) == 1:
                raise RecordError(f"found 1 of {name}, expected at least 2")
            if closed and answered and self.answer not in closed:
                raise RecordError(f"the answer '{self.answer}' is none of the {len(closed)} {name}")


def letter(place: int) -> str:
    """Of an option: a, b, .. z."""
    return chr(ord("a") + place)


def most_common(answers: Sequence[str]) -> str:
    """The answer that most people gave, the first of equally common ones; empty if all are blank."""
    given = [text.strip() for text in answers if text.strip()]
    return max(given, key=given.count, default="")


class QuestionSource(FileSource):
    """A set of questions about images; a subclass says what its file looks like.

    A sample's user turn is written by a template, drawn anew in every data epoch where `prompt` names a family.

    Args:
        annotations: the file.
        images: the folder that image names are relative to.
        prompt: the user turn: a family of the template bank, one of its templates ('vqa/short_answer'), or a text of
            your own with `{question}`; None for the family that goes with the set.
        answers: what is learned: the most common answer, or one drawn in proportion to how many people gave it.
        bad_records: 'refuse' or 'skip', as in FileSource.
    """

    task: str = "vqa"
    """What samples say is asked."""
    family: str = "vqa"
    """The templates where none are named."""
    asks: tuple[str, ...] = ("question", "statement")
    """The fields of which a template must have one, so that the task is asked at all; empty where its words are all."""
    knows: tuple[str, ...] = KNOWN
    """The fields that a template may have."""
    answered: bool = True
    """Whether its answers are public: a set without them can be predicted, and neither learned nor scored."""
    key: ClassVar[str] = "question_id"
    """Under which name a record keeps its id; for error messages."""
    records: ClassVar[str] = ""
    """The key of the file's list of records; empty where the file is a list or has lines."""

    def __init__(
        self,
        annotations: str,
        images: str,
        prompt: str | None = None,
        answers: Literal["common", "drawn"] = "common",
        bad_records: BadRecords = "refuse",
    ) -> None:
        super().__init__(annotations, images, bad_records)
        if answers not in ("common", "drawn"):
            raise ValueError(f"answers: found {answers!r}, expected 'common' or 'drawn'")
        self.prompts = Prompts(self.family if prompt is None else prompt, self.asks, self.knows)
        self.answers = answers

    @abstractmethod
    def _questions(self, record: object) -> Iterator[Question]:
        """The questions of one record: none where it belongs to another split; RecordError if it breaks the format."""

    def _records(self) -> Iterator[tuple[str, object]]:
        """Index of each record, and the record: its bytes, or its value where the whole file was one."""
        return records_in(self.annotations, self.records)

    def _read(self) -> Iterator[Entry]:
        seen: set[str] = set()
        for place, record in self._records():
            try:
                record = parse(record) if isinstance(record, bytes) else record
                found = list(self._questions(record))
                for asked in found:
                    if asked.id in seen:
                        raise RecordError(f"the id {asked.id} occurs twice, expected different ones")
                    seen.add(asked.id)
                    self._check(asked)
            except RecordError as rule:
                self._bad(refused(self._asked_in, place, record, rule, self.key))
                continue
            yield from (self._entry_of(asked)._replace(place=place) for asked in found)

    def _check(self, asked: Question) -> None:
        asked.check(bool(self.asks), self.answered)
        values = asked.values()
        if empty := sorted(name for name in self.prompts.needed if not values.get(name)):
            raise RecordError(f"has no {empty[0]}, expected some for the template {self.prompts.templates[0].text!r}")
        for name in asked.images:
            self._folder.check(name)

    def _entry_of(self, asked: Question) -> Entry:
        again = {"statement", *asked.fields}  # the question, in other words
        texts = [value for name, value in asked.values().items() if name not in again]
        words = sum(len(text.split()) for text in [*texts, asked.answer])
        # The template's own fields count among its words.
        return Entry(words + max(self.prompts.words - 1, 0), bool(asked.images), asked)

    def question(self, index: int) -> Question:
        """The checked record of sample `index`."""
        return Question(*self._entry(index))

    def image_key(self, index: int) -> int | None:
        return key_of_images(self.images, self.question(index).images)

    def learned(self, asked: Question, generator: torch.Generator) -> str:
        """The answer to learn."""
        given = [text for text in asked.references if text.strip()]
        if self.answers == "common" or not given:
            return asked.answer
        return given[int(torch.randint(len(given), (), generator=generator))]

    def sample(self, index: int, generator: torch.Generator) -> Sample:
        asked = self.question(index)
        answer = self.learned(asked, generator)
        prompt = self.prompts.draw(generator, asked.values(), len(asked.images))
        return Sample(
            id=asked.id,
            turns=(Turn(role="user", text=prompt), *([Turn(role="assistant", text=answer)] if answer else [])),
            images=self._images(*asked.images, size=asked.size),
            references=asked.accepted,
            candidates=tuple(asked.candidates),
            task=self.task,
            question_type=asked.question_type,
        )
