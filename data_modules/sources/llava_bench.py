"""LLaVA-Bench: open questions about COCO (Liu et al. 2023, arXiv 2304.08485, sec. 5.1) and 'in the wild'."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from data_modules.sources.files import BadRecords
from data_modules.sources.questions import Question, QuestionSource
from data_modules.sources.records import (
    MAX_CAPTION,
    MAX_TEXT,
    RecordError,
    field,
    lines,
    one_of,
    parse,
    records_in,
    refused,
    text_of,
)
from data_modules.sources.source import Published

CATEGORIES = ("conv", "detail", "complex")


class LlavaBench(QuestionSource):
    """questions.jsonl: {question_id, image, text, category: conv, detail or complex} a line, and answers of GPT-4 that
    was told the context in place of the picture.

    'In the wild' has 24 pictures with 60 questions (Apache 2.0), COCO 30 with 90. Answers are open: `mllm judge` has a
    language model grade them beside GPT-4's, `mllm test` tells their length alone.

    Args:
        annotations: questions.jsonl, or qa90_questions.jsonl of COCO.
        images: the folder of the pictures.
        answers: answers_gpt4.jsonl, or qa90_gpt4_answer.jsonl: {question_id, text} a line; the references.
        image_pattern: the name of a picture; 'COCO_val2014_{image}' for COCO's val2014 folder.
        prompt, bad_records: as in QuestionSource.
    """

    published: ClassVar[tuple[Published, ...]] = (
        Published(
            title="LLaVA-Bench (in the wild, COCO)",
            paper="2304.08485",
            family="vqa",
            tasks=("judged",),
            held_in=None,
            files=("questions.jsonl", "context.jsonl", "answers_gpt4.jsonl"),
        ),
    )
    task: str = "judged"

    def __init__(
        self,
        annotations: str,
        images: str,
        answers: str,
        image_pattern: str = "{image}",
        prompt: str = "vqa/bare",
        bad_records: BadRecords = "refuse",
    ) -> None:
        super().__init__(annotations, images, prompt, bad_records=bad_records)
        if "{image}" not in image_pattern:
            raise ValueError(f"image_pattern: found {image_pattern!r}, expected a name with {{image}}")
        self.references, self.image_pattern = str(answers), image_pattern
        self._answers: dict[str, str] = {}

    def _records(self) -> Iterator[tuple[str, object]]:
        self._answers = self._read_answers()
        return records_in(self.annotations)

    def _read_answers(self) -> dict[str, str]:
        """Question id -> the reference answer."""
        found: dict[str, str] = {}
        for number, line in lines(self.references):
            record: object = None
            try:
                record = parse(line)
                found[str(field(record, "question_id", int, str))] = text_of(record, "text", MAX_TEXT)
            except RecordError as rule:
                raise refused(self.references, f":{number}", record, rule, self.key) from None
        return found

    def _questions(self, record: object) -> Iterator[Question]:
        id, image = str(field(record, "question_id", int, str)), text_of(record, "image", MAX_CAPTION)
        kind = one_of(record, "category", CATEGORIES)
        if id not in self._answers:
            raise RecordError(f"has no answer in {self.references}, expected one")
        image, answer = self.image_pattern.replace("{image}", image), self._answers[id]
        yield Question(id, [image], text_of(record, "text", MAX_CAPTION), answer, question_type=kind)
