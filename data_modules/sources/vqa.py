"""Questions about images with several people's answers: VQAv2 (arXiv 1612.00837) and OK-VQA (arXiv 1906.00067)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from data_modules.sources.files import BadRecords
from data_modules.sources.questions import Question, QuestionSource, most_common
from data_modules.sources.records import MAX_CAPTION, RecordError, field, list_in, read_json, refused, text_of
from data_modules.sources.source import Published


class VqaV2(QuestionSource):
    """VQAv2's two files: {questions: [{question_id, image_id, question}]} and, joined by question_id,
    {annotations: [{question_id, image_id, multiple_choice_answer, answers: [{answer}]}]}.

    The common answer is `multiple_choice_answer`; the references are all of `answers`; `question_type` may stand beside
    them.

    Args:
        questions: the questions file.
        annotations: the annotations file; empty for a split whose answers the authors keep (test2015, test-dev2015).
        images: the folder of the images.
        image_pattern: name of an image file; `{image_id:012d}` stands for its id with 12 digits.
        prompt: the user turn: a family of templates ('vqa'), one of them, or a text with `{question}`.
        answers, bad_records: as in QuestionSource.
    """

    published: ClassVar[tuple[Published, ...]] = (
        Published(
            title="VQAv2",
            paper="1612.00837",
            family="vqa",
            tasks=("vqa",),
            held_in=True,
            files=("v2_OpenEnded_mscoco_train2014_questions.json", "v2_mscoco_train2014_annotations.json"),
        ),
    )

    spelling: str = "answer"
    """Which text of an answer is read."""

    def __init__(
        self,
        questions: str,
        annotations: str,
        images: str,
        image_pattern: str = "{image_id:012d}.png",
        prompt: str = "<image>\n{question}",
        answers: Literal["common", "drawn"] = "common",
        bad_records: BadRecords = "refuse",
    ) -> None:
        super().__init__(annotations, images, prompt, answers, bad_records)
        self.questions, self.image_pattern = str(questions), image_pattern
        self.answered = bool(annotations)
        self._answered: dict[int, tuple[int, str, list[str], str]] = {}
        try:
            image_pattern.format(image_id=1)
        except (KeyError, IndexError, ValueError, AttributeError):
            raise ValueError(
                f"image_pattern: found {image_pattern!r}, expected a name with {{image_id}} or {{image_id:012d}}"
            ) from None

    @property
    def _asked_in(self) -> str:
        return self.questions

    def _records(self) -> Iterator[tuple[str, object]]:
        self._answered = self._answers() if self.answered else {}
        records: list[object] = list_in(self.questions, read_json(self.questions), "questions")
        yield from ((f"questions[{index}]", record) for index, record in enumerate(records))
        # Each of them had a good id of its own by now.
        if odd := next(iter(self._answered.keys() - {field(record, "question_id", int) for record in records}), None):
            raise ValueError(f"{self.annotations}: question_id {odd} is not in {self.questions}, expected the same ids")

    def _questions(self, record: object) -> Iterator[Question]:
        id, image = field(record, "question_id", int), field(record, "image_id", int)
        question, name = text_of(record, "question", MAX_CAPTION), self.image_pattern.format(image_id=image)
        if not self.answered:
            yield Question(str(id), [name], question, "")
            return
        if id not in self._answered:
            raise RecordError(f"has no annotation in {self.annotations}, expected one")
        owner, answer, references, kind = self._answered[id]
        if owner != image:
            raise RecordError(f"image_id is {image}, expected {owner} as in {self.annotations}")
        yield Question(str(id), [name], question, answer, references, question_type=kind)

    def _answers(self) -> dict[int, tuple[int, str, list[str], str]]:
        """Question id -> image id, the answer to learn, all answers, the type of the question."""
        answers: dict[int, tuple[int, str, list[str], str]] = {}
        for index, record in enumerate(list_in(self.annotations, read_json(self.annotations), "annotations")):
            try:
                id = field(record, "question_id", int)
                if id in answers:
                    raise RecordError("the id occurs twice, expected different ones")
                references = [field(each, self.spelling, str) for each in field(record, "answers", list)]
                if not references:
                    raise RecordError("'answers' is empty, expected at least one")
                kind = str(record.get("question_type") or "")
                answers[id] = (field(record, "image_id", int), self._common(record, references), references, kind)
            except RecordError as rule:
                raise refused(self.annotations, f"annotations[{index}]", record, rule, "question_id") from None
        return answers

    def _common(self, annotation: object, answers: list[str]) -> str:
        """The answer that most people gave."""
        return text_of(annotation, "multiple_choice_answer", MAX_CAPTION)


class OkVqa(VqaV2):
    """OK-VQA's two files: as VQAv2's, the answers being [{answer, raw_answer}] and none of them named the common one.

    Args:
        questions: the questions file.
        annotations: the annotations file.
        images: the folder of the images.
        image_pattern: as in VqaV2; 'COCO_val2014_{image_id:012d}.jpg' for the test questions.
        prompt: as in VqaV2.
        answers: as in QuestionSource; of equally common answers the first is learned.
        spelling: 'answer' has its words stemmed and is what the authors' evaluation compares; 'raw_answer' is what
            people wrote.
        bad_records: as in QuestionSource.
    """

    published: ClassVar[tuple[Published, ...]] = (
        Published(
            title="OK-VQA",
            paper="1906.00067",
            family="vqa",
            tasks=("vqa",),
            held_in=True,
            files=("OpenEnded_mscoco_train2014_questions.json", "mscoco_train2014_annotations.json"),
        ),
    )

    def __init__(
        self,
        questions: str,
        annotations: str,
        images: str,
        image_pattern: str = "COCO_train2014_{image_id:012d}.jpg",
        prompt: str = "vqa",
        answers: Literal["common", "drawn"] = "common",
        spelling: Literal["answer", "raw_answer"] = "answer",
        bad_records: BadRecords = "refuse",
    ) -> None:
        super().__init__(questions, annotations, images, image_pattern, prompt, answers, bad_records)
        if spelling not in ("answer", "raw_answer"):
            raise ValueError(f"spelling: found {spelling!r}, expected 'answer' or 'raw_answer'")
        self.spelling = spelling

    def _common(self, annotation: object, answers: list[str]) -> str:
        return text_of({"answers": most_common(answers)}, "answers", MAX_CAPTION)
