"""MM-Vet (Yu et al. 2023, arXiv 2308.02490): open questions that need several capabilities at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from data_modules.sources.files import BadRecords
from data_modules.sources.questions import Question, QuestionSource
from data_modules.sources.records import MAX_CAPTION, MAX_TEXT, keyed_records_in, text_of, texts_of
from data_modules.sources.source import Published


class MmVet(QuestionSource):
    """mm-vet.json: {'v1_0': {imagename, question, answer, capability: [rec, ocr, ..], imagesource}}, 218 questions.

    Answers are open: `mllm judge` has a language model grade them, `mllm test` tells their length alone. In `answer`,
    <AND> joins what is needed and <OR> what is enough. A sample's kind of question is its capabilities: 'ocr+math'. The
    data may be used for research and teaching that is not commercial.

    Args:
        annotations: the file.
        images: the folder images/ beside it.
        prompt, bad_records: as in QuestionSource.
    """

    published: ClassVar[tuple[Published, ...]] = (
        Published(
            title="MM-Vet",
            paper="2308.02490",
            family="vqa",
            tasks=("judged",),
            held_in=None,
            files=("mm-vet.json",),
        ),
    )
    task: str = "judged"
    key: ClassVar[str] = "id"

    def __init__(
        self, annotations: str, images: str, prompt: str = "vqa/bare", bad_records: BadRecords = "refuse"
    ) -> None:
        super().__init__(annotations, images, prompt, bad_records=bad_records)

    def _records(self) -> Iterator[tuple[str, object]]:
        return keyed_records_in(self.annotations, self.key)

    def _questions(self, record: object) -> Iterator[Question]:
        id, image = text_of(record, "id", MAX_CAPTION), text_of(record, "imagename", MAX_CAPTION)
        question, answer = text_of(record, "question", MAX_CAPTION), text_of(record, "answer", MAX_TEXT)
        kind = "+".join(sorted(set(texts_of(record, "capability", MAX_CAPTION))))
        yield Question(id, [image], question, answer, question_type=kind)
