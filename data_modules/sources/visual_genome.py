"""Questions about all that is in an image: Visual Genome (arXiv 1602.07332), which BLIP-2 adds to VQAv2."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from data_modules.sources.files import BadRecords
from data_modules.sources.questions import Question, QuestionSource
from data_modules.sources.records import MAX_CAPTION, RecordError, field, text_of


class VisualGenomeQa(QuestionSource):
    """question_answers.json: [{id, qas: [{qa_id, image_id, question, answer}]}], one record an image.

    Args:
        annotations: the file.
        images: the folder of IMAGE_ID.jpg, the contents of the published VG_100K and VG_100K_2 together.
        prompt, bad_records: as in QuestionSource.
    """

    task: str = "exact"
    key: ClassVar[str] = "id"

    def __init__(
        self, annotations: str, images: str, prompt: str | None = None, bad_records: BadRecords = "refuse"
    ) -> None:
        super().__init__(annotations, images, prompt, bad_records=bad_records)

    def _questions(self, record: Any) -> Iterator[Question]:
        image = field(record, "id", int)
        for asked in field(record, "qas", list):
            id, own = field(asked, "qa_id", int), field(asked, "image_id", int)
            if own != image:
                raise RecordError(f"question {id} is about the image {own}, expected {image} as its record")
            question, answer = text_of(asked, "question", MAX_CAPTION), text_of(asked, "answer", MAX_CAPTION)
            yield Question(str(id), [f"{image}.jpg"], question, answer)
