"""Images with text in them: what an OCR system read, and OCR-VQA's questions about book covers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import ClassVar, Literal

from data_modules.sources.files import BadRecords
from data_modules.sources.questions import Question, QuestionSource
from data_modules.sources.records import MAX_CAPTION, RecordError, field, keyed_records_in, records_in, refused, text_of
from data_modules.sources.source import Published

SPLITS = {"train": 1, "val": 2, "test": 3}
"""OCR-VQA's numbers of its parts."""


def read_ocr(path: str) -> dict[str, list[str]]:
    """Image id -> OCR tokens, from the file that TextVQA and TextCaps publish: {data: [{image_id, ocr_tokens}]}.

    Args:
        path: TextVQA_Rosetta_OCR_v0.2_SPLIT.json; empty for no tokens at all.

    Raises:
        ValueError: names the file, the record and the rule that it breaks.
    """
    tokens: dict[str, list[str]] = {}
    for place, record in records_in(path, "data") if path else ():
        try:
            given = field(record, "ocr_tokens", list)
            if odd := [each for each in given if not isinstance(each, str)]:
                raise RecordError(f"'ocr_tokens' holds {odd[0]!r}, expected texts")
            tokens[field(record, "image_id", str)] = given
        except RecordError as rule:
            raise refused(path, place, record, rule, "image_id") from None
    return tokens


class OcrVqa(QuestionSource):
    """OCR-VQA's dataset.json: {id: {imageURL, questions, answers, split}}; each image has several questions.

    Args:
        annotations: the file.
        images: the folder of the covers; a cover's name is its id and the suffix of its URL.
        split: which part of the file: train, val, test, or several joined by '+'.
        prompt, answers, bad_records: as in QuestionSource; covers that are gone from the web need 'skip'.
    """

    published: ClassVar[tuple[Published, ...]] = (
        Published(
            title="OCR-VQA",
            paper="ICDAR 2019",
            family="vqa",
            tasks=("exact",),
            held_in=True,
            files=("dataset.json",),
        ),
    )
    task: str = "exact"
    key: ClassVar[str] = "id"

    def __init__(
        self,
        annotations: str,
        images: str,
        split: str,
        prompt: str | None = None,
        answers: Literal["common", "drawn"] = "common",
        bad_records: BadRecords = "refuse",
    ) -> None:
        super().__init__(annotations, images, prompt, answers, bad_records)
        if odd := [part for part in split.split("+") if part not in SPLITS]:
            raise ValueError(f"split: found '{odd[0]}', expected {' or '.join(SPLITS)}")
        self._parts = {SPLITS[part] for part in split.split("+")}

    def _records(self) -> Iterator[tuple[str, object]]:
        return keyed_records_in(self.annotations, self.key)

    def _questions(self, record: object) -> Iterator[Question]:
        if (part := field(record, "split", int)) not in SPLITS.values():
            raise RecordError(f"'split' is {part}, expected 1, 2 or 3")
        if part not in self._parts:
            return
        questions, answers = field(record, "questions", list), field(record, "answers", list)
        if not questions or len(questions) != len(answers):
            raise RecordError(f"found {len(questions)} questions and {len(answers)} answers, expected as many of each")
        id = field(record, "id", str)
        image = id + PurePosixPath(text_of(record, "imageURL", MAX_CAPTION)).suffix
        for number, (question, answer) in enumerate(zip(questions, answers, strict=True)):
            pair = {"question": question, "answer": answer}
            texts = text_of(pair, "question", MAX_CAPTION), text_of(pair, "answer", MAX_CAPTION)
            yield Question(f"{id}_{number}", [image], *texts)
