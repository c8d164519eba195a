"""Visual Dialog (arXiv 1611.08669): questions that go on with a dialogue, each with a hundred answers to rank."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from data_modules.sources.files import BadRecords
from data_modules.sources.questions import Question, QuestionSource
from data_modules.sources.records import MAX_CAPTION, RecordError, field, list_in, read_json, text_of
from data_modules.sources.source import Published

ROUNDS, OPTIONS = 10, 100
"""Of each dialogue, and of each round of it (sec. 3 and 5)."""


class VisualDialog(QuestionSource):
    """visdial_1.0_SPLIT.json: {data: {questions: [texts], answers: [texts], dialogs: [{image_id, caption, dialog}]}}.

    `dialog` has ten rounds {question, answer, answer_options: [100], gt_index}; all but the last are indices into the
    two lists of texts, the last one is the place of `answer` among the options. One sample a round, told the rounds
    before it; the options are its candidates.

    Args:
        annotations: the file of a split whose answers are public (train, val).
        images: the folder of the images.
        prefix: what the name of an image has in front of its id of 12 digits and '.jpg'.
        caption: whether the history opens with the image's caption, as in the paper (sec. 5).
        prompt, bad_records: as in QuestionSource, with `{history}` and `{context}`, the caption.
    """

    published: ClassVar[tuple[Published, ...]] = (
        Published(
            title="Visual Dialog",
            paper="1611.08669",
            family="dialogue",
            tasks=("mrr",),
            held_in=False,
            files=("visdial_1.0_val.json",),
        ),
    )
    family: str = "dialogue"
    task: str = "mrr"
    key: ClassVar[str] = "image_id"

    def __init__(
        self,
        annotations: str,
        images: str,
        prefix: str = "VisualDialog_val2018_",
        caption: bool = True,
        prompt: str = "dialogue/short_answer",
        bad_records: BadRecords = "refuse",
    ) -> None:
        super().__init__(annotations, images, prompt, bad_records=bad_records)
        self.prefix, self.caption = prefix, caption
        self._texts: dict[str, list[object]] = {}

    def _records(self) -> Iterator[tuple[str, object]]:
        content = read_json(self.annotations)
        data = content.get("data") if isinstance(content, dict) else content
        self._texts = {name: list_in(self.annotations, data, name) for name in ("questions", "answers")}
        dialogues = list_in(self.annotations, data, "dialogs")
        yield from ((f"data.dialogs[{index}]", record) for index, record in enumerate(dialogues))

    def _questions(self, record: object) -> Iterator[Question]:
        image, rounds = field(record, "image_id", int), field(record, "dialog", list)
        caption = text_of(record, "caption", MAX_CAPTION) if self.caption else ""
        if len(rounds) != ROUNDS:
            raise RecordError(f"found {len(rounds)} rounds, expected {ROUNDS}")
        history: list[tuple[str, str]] = []
        for number, each in enumerate(rounds, 1):
            try:
                question, answer, options = self._round(each)
            except RecordError as rule:
                raise RecordError(f"round {number}: {rule}") from None
            yield Question(
                f"{image}_{number}",
                [f"{self.prefix}{image:012d}.jpg"],
                question,
                answer,
                history=tuple(history),
                context=caption,
                candidates=options,
            )
            history.append((question, answer))

    def _round(self, record: object) -> tuple[str, str, list[str]]:
        """Question, answer and the options to answer of a round."""
        given, place = field(record, "answer_options", list), field(record, "gt_index", int)
        if len(given) != OPTIONS:
            raise RecordError(f"found {len(given)} of 'answer_options', expected {OPTIONS}")
        if not 0 <= place < OPTIONS:
            raise RecordError(f"'gt_index' is {place}, expected 0 to {OPTIONS - 1}")
        if given[place] != (true := field(record, "answer", int)):
            raise RecordError(f"'gt_index' {place} is the answer {given[place]}, expected {true}")
        options = [self._text("answers", {"answer_options": each}, "answer_options") for each in given]
        return self._text("questions", record, "question"), options[place], options

    def _text(self, name: str, record: object, key: str) -> str:
        """What the index `record[key]` stands for in the list `name` of texts."""
        texts, index = self._texts[name], field(record, key, int)
        if not 0 <= index < len(texts):
            raise RecordError(f"'{key}' is {index}, expected 0 to {len(texts) - 1} as 'data.{name}' has {len(texts)}")
        return text_of({f"data.{name}[{index}]": texts[index]}, f"data.{name}[{index}]", MAX_CAPTION)
