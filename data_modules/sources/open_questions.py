"""Open questions about one image that InstructBLIP (arXiv 2305.06500) tests on alone: TextVQA, VizWiz and GQA."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

from data_modules.sources.files import BadRecords
from data_modules.sources.ocr import read_ocr
from data_modules.sources.questions import Question, QuestionSource, most_common
from data_modules.sources.records import MAX_CAPTION, RecordError, field, keyed_records_in, text_of
from data_modules.sources.source import Published

PEOPLE = 10
"""So many answered each question of TextVQA and VizWiz; VQA accuracy is defined for ten (arXiv 1505.00468, sec. 3)."""


def ten_answers(given: Sequence[object]) -> list[str]:
    """The texts of ten people, some of which may be blank; RecordError otherwise."""
    if len(given) != PEOPLE:
        raise RecordError(f"found {len(given)} answers, expected those of {PEOPLE} people")
    return [field({"answers": each}, "answers", str) for each in given]


class TextVqa(QuestionSource):
    """TextVQA_0.5.1_SPLIT.json: {data: [{question_id, image_id, question, answers: [ten texts]}]}.

    Args:
        annotations: the file of a split whose answers are public (train, val).
        images: the folder of IMAGE_ID.jpg; those of val are among the training images.
        ocr: TextVQA_Rosetta_OCR_v0.2_SPLIT.json, whose first 30 tokens of an image are told; empty for none.
        prompt: as in QuestionSource, with `{ocr}`.
        answers, bad_records: as in QuestionSource.
    """

    published: ClassVar[tuple[Published, ...]] = (
        Published(
            title="TextVQA",
            paper="1904.08920",
            family="ocr_vqa",
            tasks=("vqa",),
            held_in=False,
            files=("TextVQA_0.5.1_val.json", "TextVQA_Rosetta_OCR_v0.2_val.json"),
        ),
    )
    family: str = "ocr_vqa"
    records: ClassVar[str] = "data"

    def __init__(
        self,
        annotations: str,
        images: str,
        ocr: str = "",
        prompt: str = "ocr_vqa/short_answer",
        answers: Literal["common", "drawn"] = "common",
        bad_records: BadRecords = "refuse",
    ) -> None:
        super().__init__(annotations, images, prompt, answers, bad_records)
        self.ocr = str(ocr)
        self._tokens: dict[str, list[str]] = {}

    def _records(self) -> Iterator[tuple[str, object]]:
        self._tokens = read_ocr(self.ocr)
        return super()._records()

    def _questions(self, record: object) -> Iterator[Question]:
        id, image = field(record, "question_id", int), text_of(record, "image_id", MAX_CAPTION)
        question, given = text_of(record, "question", MAX_CAPTION), ten_answers(field(record, "answers", list))
        if self.ocr and image not in self._tokens:
            raise RecordError(f"image {image} is not in {self.ocr}, expected its OCR tokens")
        tokens = self._tokens.get(image, [])
        yield Question(str(id), [f"{image}.jpg"], question, most_common(given), given, ocr=tokens)


class VizWiz(QuestionSource):
    """VizWiz' SPLIT.json: [{image, question, answers: [{answer}, ten of them], answer_type, answerable}].

    What most people could not answer has the answer 'unanswerable'; so do the published scores.

    Args:
        annotations: the file of a split: train.json, val.json, or test.json, whose answers the authors keep.
        images: the folder of the images ('VizWiz_val_00000000.jpg'), whose names are the samples' ids.
        unanswerable: whether to ask what is not `answerable`.
        answered: whether the file has answers; of one without, samples have no references.
        prompt, answers, bad_records: as in QuestionSource.
    """

    published: ClassVar[tuple[Published, ...]] = (
        Published(
            title="VizWiz",
            paper="1802.08218",
            family="vqa",
            tasks=("vqa",),
            held_in=False,
            files=("val.json",),
        ),
    )
    key: ClassVar[str] = "image"

    def __init__(
        self,
        annotations: str,
        images: str,
        unanswerable: bool = True,
        prompt: str = "vqa/short_answer",
        answers: Literal["common", "drawn"] = "common",
        bad_records: BadRecords = "refuse",
        answered: bool = True,
    ) -> None:
        super().__init__(annotations, images, prompt, answers, bad_records)
        self.unanswerable, self.answered = unanswerable, answered

    def _questions(self, record: object) -> Iterator[Question]:
        image, question = text_of(record, "image", MAX_CAPTION), text_of(record, "question", MAX_CAPTION)
        if not self.answered:
            yield Question(image, [image], question, "")
            return
        given = ten_answers([field(each, "answer", str) for each in field(record, "answers", list)])
        if (answerable := field(record, "answerable", int)) not in (0, 1):
            raise RecordError(f"'answerable' is {answerable}, expected 0 or 1")
        if answerable or self.unanswerable:
            yield Question(image, [image], question, most_common(given), given)


class Gqa(QuestionSource):
    """GQA's SPLIT_questions.json: {question id: {imageId, question, answer, fullAnswer, isBalanced}}.

    Args:
        annotations: the file of a split whose answers are public (train, val, testdev), all questions or balanced ones.
        images: the folder of IMAGE_ID.jpg.
        balanced: of a file of all questions, take those alone that `isBalanced`; scores are published of these.
        prompt, bad_records: as in QuestionSource.
    """

    published: ClassVar[tuple[Published, ...]] = (
        Published(
            title="GQA",
            paper="1902.09506",
            family="vqa",
            tasks=("exact",),
            held_in=False,
            files=("testdev_balanced_questions.json",),
        ),
    )
    key: ClassVar[str] = "id"
    task: str = "exact"

    def __init__(
        self,
        annotations: str,
        images: str,
        balanced: bool = True,
        prompt: str = "vqa/short_answer",
        bad_records: BadRecords = "refuse",
    ) -> None:
        super().__init__(annotations, images, prompt, bad_records=bad_records)
        self.balanced = balanced

    def _records(self) -> Iterator[tuple[str, object]]:
        return keyed_records_in(self.annotations, self.key)

    def _questions(self, record: object) -> Iterator[Question]:
        question, answer = text_of(record, "question", MAX_CAPTION), text_of(record, "answer", MAX_CAPTION)
        image = text_of(record, "imageId", MAX_CAPTION)
        if field(record, "isBalanced", bool) or not self.balanced:
            yield Question(field(record, "id", str), [f"{image}.jpg"], question, answer)
