"""Questions about charts and scanned documents: ChartQA (arXiv 2203.10244) and DocVQA (arXiv 2007.00398)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import ClassVar

from data_modules.sources.files import BadRecords
from data_modules.sources.questions import Question, QuestionSource, most_common
from data_modules.sources.records import MAX_CAPTION, field, text_of, texts_of
from data_modules.sources.source import Published


class ChartQa(QuestionSource):
    """train_human.json, train_augmented.json and the like: [{imgname, query, label}].

    Records have no id; it is the image's name and how many questions about the image came before.

    Args:
        annotations: the file.
        images: the folder of the images: the data set's png.
        prompt, bad_records: as in QuestionSource.
    """

    published: ClassVar[tuple[Published, ...]] = (
        Published(
            title="ChartQA",
            paper="2203.10244",
            family="document",
            tasks=("chart",),
            held_in=None,
            files=("train_human.json", "train_augmented.json"),
        ),
    )
    task: str = "chart"
    family: str = "document"
    key: ClassVar[str] = "imgname"

    def __init__(
        self, annotations: str, images: str, prompt: str | None = None, bad_records: BadRecords = "refuse"
    ) -> None:
        super().__init__(annotations, images, prompt, bad_records=bad_records)
        self._before: Counter[str] = Counter()

    def _records(self) -> Iterator[tuple[str, object]]:
        self._before.clear()
        return super()._records()

    def _questions(self, record: object) -> Iterator[Question]:
        name = field(record, "imgname", str)
        question, answer = text_of(record, "query", MAX_CAPTION), text_of(record, "label", MAX_CAPTION)
        yield Question(f"{name}#{self._before[name]}", [name], question, answer)
        self._before[name] += 1


class DocVqa(QuestionSource):
    """train_v1.0.json, val_v1.0.json: {data: [{questionId, question, image: "documents/a_1.png", answers: [..]}]}.

    All answers are references; the first of the most common ones is learned. The test file has no answers.

    Args:
        annotations: the file.
        images: the folder that holds documents/.
        prompt, bad_records: as in QuestionSource.
    """

    published: ClassVar[tuple[Published, ...]] = (
        Published(
            title="DocVQA",
            paper="2007.00398",
            family="document",
            tasks=("document",),
            held_in=None,
            files=("train_v1.0.json", "val_v1.0.json"),
        ),
    )
    task: str = "document"
    family: str = "document"
    key: ClassVar[str] = "questionId"
    records: ClassVar[str] = "data"

    def __init__(
        self, annotations: str, images: str, prompt: str | None = None, bad_records: BadRecords = "refuse"
    ) -> None:
        super().__init__(annotations, images, prompt, bad_records=bad_records)

    def _questions(self, record: object) -> Iterator[Question]:
        id, answers = field(record, "questionId", int), texts_of(record, "answers", MAX_CAPTION)
        question, image = text_of(record, "question", MAX_CAPTION), field(record, "image", str)
        yield Question(str(id), [image], question, most_common(answers), answers)
