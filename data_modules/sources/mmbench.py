"""MMBench (Liu et al. 2023, arXiv 2307.06281): multiple choice, each question asked once for each of its choices."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal, get_args

from data_modules.sources.files import BadRecords
from data_modules.sources.questions import KNOWN, Question, QuestionSource
from data_modules.sources.records import MAX_CAPTION, RecordError, one_of, text_of
from data_modules.sources.seed_bench import choice_lines
from data_modules.sources.source import Published
from data_modules.sources.tsv import TsvImage, TsvRow, tsv_rows

Passes = Literal["circular", "first"]
PASS = 1_000_000
"""The index of a question in pass k is k times this more than in its first pass."""
LETTERS = ("A", "B", "C", "D")
NOTHING = ("", "nan", "none")
"""What an empty cell may hold, in any case (released LLaVA, llava/eval/model_vqa_mmbench.py, `is_none`)."""
NEEDED = ("index", "question", "A", "B", "image")


class MmBench(QuestionSource):
    """mmbench_SPLIT_VERSION.tsv, with the columns index, question, hint, A to D, answer, category, l2-category, image
    (base64, or the index of the row that has it), source, comment, split.

    Published files hold each question once for each of its choices, which stand one place further on each time; a row's
    index modulo 1,000,000 tells its question. Of a file with the first passes alone the others are made. A test file
    has no `answer`: `mllm predict` answers it, and `mllm submit` writes what the server takes.

    Args:
        annotations: the file.
        passes: 'circular' asks each question once for each choice, as CircularEval needs; 'first' asks it once.
        kind: which column tells the kind of question.
        prompt: as in QuestionSource, with {choices}, and {context} for the hint.
        bad_records: as in QuestionSource.
    """

    published: ClassVar[tuple[Published, ...]] = (
        Published(
            title="MMBench",
            paper="2307.06281",
            family="letter_choice",
            tasks=("mmbench",),
            held_in=None,
            files=("mmbench_dev_20230712.tsv", "mmbench_test_20230712.tsv"),
        ),
    )
    family: str = "letter_choice"
    task: str = "mmbench"
    knows: tuple[str, ...] = (*KNOWN, "choices")
    key: ClassVar[str] = "index"

    def __init__(
        self,
        annotations: str,
        passes: Passes = "circular",
        kind: Literal["category", "l2-category"] = "l2-category",
        prompt: str = "letter_choice/llava",
        bad_records: BadRecords = "refuse",
    ) -> None:
        super().__init__(annotations, "", prompt, bad_records=bad_records)
        if passes not in get_args(Passes):
            raise ValueError(f"passes: found {passes!r}, expected 'circular' or 'first'")
        if kind not in ("category", "l2-category"):
            raise ValueError(f"kind: found {kind!r}, expected 'category' or 'l2-category'")
        self.passes, self.kind = passes, kind
        self._pictures: dict[str, str] = {}
        self._makes_passes, self._position = False, 0

    def _records(self) -> Iterator[tuple[str, object]]:
        rows: list[tuple[str, dict[str, str]]] = []
        for row in tsv_rows(self.annotations):
            if not rows:
                self._read_header(list(row.cells))
            rows.append((f":{row.line}", {**row.cells, "image": self._keep_place(row)}))
        self._makes_passes = self.passes == "circular" and all(_pass_of(cells["index"]) == 0 for _, cells in rows)
        return iter(rows)

    def _read_header(self, columns: list[str]) -> None:
        if missing := [name for name in NEEDED if name not in columns]:
            raise ValueError(f"{self.annotations}: found no column '{missing[0]}', expected {', '.join(NEEDED)}")
        self.answered, self._position = "answer" in columns, columns.index("image")

    def _keep_place(self, row: TsvRow) -> str:
        """The index of the row that has the picture, of which the place is kept instead of the bytes."""
        index, image = row.cells["index"], row.cells["image"]
        if image.isdecimal() and len(image) < 16:
            return image
        try:
            base64.b64decode(image, validate=True)
        except binascii.Error:
            return ""  # refused with its row
        if image:
            digest = hashlib.sha256(image.encode()).hexdigest()[:16]
            self._pictures[index] = f"{row.start}:{row.size}:{self._position}:{digest}"
        return index if image else ""

    def _questions(self, record: object) -> Iterator[Question]:
        assert isinstance(record, dict)
        if not record["index"].isdecimal():
            raise RecordError(f"'index' is '{record['index']}', expected a number")
        index = int(record["index"])
        if self.passes == "first" and index >= PASS:
            return
        choices = _choices(record)
        letters = LETTERS[: len(choices)]
        answer = one_of(record, "answer", letters) if self.answered else ""
        right = letters.index(answer) if answer else None
        for turn in range(len(choices) if self._makes_passes else 1):
            moved = [*choices[turn:], *choices[:turn]]
            letter = "" if right is None else letters[(right - turn) % len(choices)]
            yield self._question(record, index + turn * PASS, moved, letter)

    def _question(self, record: dict[str, str], index: int, choices: Sequence[str], answer: str) -> Question:
        kind, hint = record.get(self.kind, ""), record.get("hint", "")
        return Question(
            str(index),
            [self._picture(record["image"])],
            text_of(record, "question", MAX_CAPTION),
            answer,
            context="" if hint.lower() in NOTHING else hint,
            fields={"choices": choice_lines(choices)},
            question_type="" if kind.lower() in NOTHING else kind,
        )

    def _picture(self, index: str) -> str:
        """Where the picture stands that a row has or names: start, size, position and digest of a TsvImage."""
        if index not in self._pictures:
            found = f"row {index}, which has no picture" if index else "nothing that is base64"
            raise RecordError(f"'image' is {found}, expected a picture in base64 or the index of a row that has one")
        return self._pictures[index]

    def _check(self, asked: Question) -> None:
        super()._check(asked._replace(images=[]))  # which are no files

    def _images(self, *names: str, size: Sequence[int] = ()) -> tuple[Any, ...]:
        places = [name.split(":") for name in names]
        return tuple(TsvImage(self.annotations, int(a), int(b), int(c), digest) for a, b, c, digest in places)


def _pass_of(index: str) -> int:
    return int(index) // PASS if index.isdecimal() else 0


def _choices(record: dict[str, str]) -> list[str]:
    """The choices of a row, up to the first that is empty; RecordError if there are fewer than two."""
    found: list[str] = []
    for letter in LETTERS:
        text = record.get(letter, "").strip()
        if text.lower() in NOTHING:
            break
        found.append(text)
    if len(found) < 2:
        raise RecordError(f"found {len(found)} choices, expected at least 2")
    return found
