"""SEED-Bench (Li et al. 2023, arXiv 2307.16125): multiple choice about images, by nine kinds of question."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

from data_modules.sources.files import BadRecords
from data_modules.sources.questions import KNOWN, Question, QuestionSource
from data_modules.sources.records import MAX_CAPTION, RecordError, field, list_in, one_of, read_json, text_of
from data_modules.sources.source import Published

LETTERS = ("A", "B", "C", "D")


def choice_lines(choices: Sequence[str]) -> str:
    """A line for each choice: 'A. a dog'."""
    return "\n".join(f"{letter}. {text}" for letter, text in zip("ABCDE", choices, strict=False))


class SeedBench(QuestionSource):
    """SEED-Bench.json: {questions: [{question_id, question, choice_a .. choice_d, answer: A to D, data_id, data_type,
    question_type_id}], question_type: {name: id}}; of these, the questions about images (CC BY-NC 4.0).

    Args:
        annotations: the file.
        images: the folder SEED-Bench-image, whose files are named `data_id`, without a suffix.
        ranked: rank the choices by their likelihood, as the paper does (sec. 3.4), instead of asking for a letter, as
            LLaVA does; the task is 'choice' then, else 'seed_bench'.
        prompt: as in QuestionSource, with {choices}; None for that of LLaVA, or where ranked of the released eval.py.
        bad_records: as in QuestionSource.
    """

    published: ClassVar[tuple[Published, ...]] = (
        Published(
            title="SEED-Bench (images)",
            paper="2307.16125",
            family="letter_choice",
            tasks=("seed_bench", "choice"),
            held_in=None,
            files=("SEED-Bench.json",),
        ),
    )
    family: str = "letter_choice"
    task: str = "seed_bench"
    knows: tuple[str, ...] = (*KNOWN, "choices")

    def __init__(
        self,
        annotations: str,
        images: str,
        ranked: bool = False,
        prompt: str | None = None,
        bad_records: BadRecords = "refuse",
    ) -> None:
        default = "<image>\nQuestion: {question}\nAnswer:" if ranked else "letter_choice/llava"
        super().__init__(annotations, images, prompt or default, bad_records=bad_records)
        self.ranked = ranked
        if ranked:
            self.task = "choice"
        self._kinds: dict[int, str] = {}

    def _records(self) -> Iterator[tuple[str, object]]:
        content = read_json(self.annotations)
        kinds = content.get("question_type") if isinstance(content, dict) else None
        self._kinds = {id: name for name, id in kinds.items()} if isinstance(kinds, dict) else {}
        records = list_in(self.annotations, content, "questions")
        return ((f"questions[{index}]", record) for index, record in enumerate(records))

    def _questions(self, record: object) -> Iterator[Question]:
        if field(record, "data_type", str) != "image":
            return
        id, image = field(record, "question_id", int, str), text_of(record, "data_id", MAX_CAPTION)
        kind, question = field(record, "question_type_id", int), text_of(record, "question", MAX_CAPTION)
        if self._kinds and kind not in self._kinds:
            raise RecordError(f"'question_type_id' is {kind}, expected one of 'question_type'")
        choices = [text_of(record, f"choice_{letter.lower()}", MAX_CAPTION) for letter in LETTERS]
        answer = one_of(record, "answer", LETTERS)
        yield Question(
            str(id),
            [image],
            question,
            choices[LETTERS.index(answer)] if self.ranked else answer,
            fields={"choices": choice_lines(choices)},
            candidates=choices if self.ranked else (),
            question_type=self._kinds.get(kind, str(kind)),
        )
