"""Questions that need knowledge and reasoning: A-OKVQA (arXiv 2206.01718)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from data_modules.sources.files import BadRecords
from data_modules.sources.questions import Question, QuestionSource, most_common
from data_modules.sources.records import MAX_CAPTION, RecordError, field, text_of, texts_of
from data_modules.sources.source import Published


class AOkVqa(QuestionSource):
    """aokvqa_v1p0_SPLIT.json: [{question_id, image_id, question, choices, correct_choice_idx, direct_answers,
    difficult_direct_answer}].

    Args:
        annotations: the file of a split whose answers are public (train, val).
        images: the folder of COCO's images.
        form: 'direct' asks for an answer, which ten people gave; 'choice' names the choices, of which one is right.
        prompt: as in QuestionSource; None for the family of the form.
        image_pattern: name of an image file; `{image_id:012d}` stands for its id with 12 digits.
        answers, bad_records: as in QuestionSource.
        difficult: whether direct answers are also asked for where the authors' evaluation leaves the question out.
    """

    published: ClassVar[tuple[Published, ...]] = (
        Published(
            title="A-OKVQA",
            paper="2206.01718",
            family="vqa",
            tasks=("vqa", "choice"),
            held_in=True,
            files=("aokvqa_v1p0_train.json",),
        ),
    )

    def __init__(
        self,
        annotations: str,
        images: str,
        form: Literal["direct", "choice"] = "direct",
        prompt: str | None = None,
        image_pattern: str = "{image_id:012d}.jpg",
        answers: Literal["common", "drawn"] = "common",
        difficult: bool = False,
        bad_records: BadRecords = "refuse",
    ) -> None:
        if form not in ("direct", "choice"):
            raise ValueError(f"form: found {form!r}, expected 'direct' or 'choice'")
        if form == "choice":
            self.family, self.task = "multiple_choice", "choice"
        super().__init__(annotations, images, prompt, answers, bad_records)
        self.form, self.image_pattern, self.difficult = form, image_pattern, difficult

    def _questions(self, record: object) -> Iterator[Question]:
        id, question = text_of(record, "question_id", MAX_CAPTION), text_of(record, "question", MAX_CAPTION)
        images = [self.image_pattern.format(image_id=field(record, "image_id", int))]
        if self.form == "direct":
            if field(record, "difficult_direct_answer", bool) and not self.difficult:
                return
            given = texts_of(record, "direct_answers", MAX_CAPTION)
            yield Question(id, images, question, most_common(given), given)
            return
        choices, right = texts_of(record, "choices", MAX_CAPTION), field(record, "correct_choice_idx", int)
        if not 0 <= right < len(choices):
            raise RecordError(f"'correct_choice_idx' is {right}, expected 0 to {len(choices) - 1}")
        yield Question(id, images, question, choices[right], options=choices, candidates=choices)
