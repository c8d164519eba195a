"""MME (Fu et al. 2023, arXiv 2306.13394): two yes-or-no questions about each picture, in 14 subtasks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from data_modules.sources.files import BadRecords
from data_modules.sources.questions import Question, QuestionSource
from data_modules.sources.records import MAX_CAPTION, RecordError, lines, not_found, text_of
from data_modules.sources.source import Published

SUBTASKS = (
    *("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR"),
    *("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"),
)
"""Ten of perception, four of cognition, in the order of the released eval_tool/calculation.py."""
SUFFIXES = (".jpg", ".png", ".jpeg")
ENDING = "Please answer yes or no."
"""How each published question ends; templates put it back."""


class Mme(QuestionSource):
    """MME_Benchmark_release_version: a folder for each subtask, with a text file for each picture.

    A text file has two lines, 'QUESTION<tab>Yes' and 'QUESTION<tab>No', and the name of its picture. In some subtasks
    pictures stand in images/ and text files in questions_answers_YN/, in others both stand in the subtask's folder. A
    sample's id is 'SUBTASK/PICTURE#1' or '#2', its kind of question the subtask. The data may be used for academic
    research alone.

    Args:
        annotations: the folder.
        subtasks: which of them; all that are there if none are named.
        prompt: as in QuestionSource; {question} lacks the ending 'Please answer yes or no.'
        bad_records: as in QuestionSource.
    """

    published: ClassVar[tuple[Published, ...]] = (
        Published(
            title="MME",
            paper="2306.13394",
            family="mme",
            tasks=("mme",),
            held_in=None,
            files=("MME_Benchmark_release_version/",),
        ),
    )
    family: str = "mme"
    task: str = "mme"
    key: ClassVar[str] = "id"

    def __init__(
        self,
        annotations: str,
        subtasks: Sequence[str] = (),
        prompt: str = "mme/llava",
        bad_records: BadRecords = "refuse",
    ) -> None:
        super().__init__(annotations, annotations, prompt, bad_records=bad_records)
        if odd := [each for each in subtasks if each not in SUBTASKS]:
            raise ValueError(f"subtasks: found {odd[0]!r}, expected some of {', '.join(SUBTASKS)}")
        self.subtasks = tuple(subtasks)

    def _records(self) -> Iterator[tuple[str, object]]:
        root = Path(self.annotations)
        if not root.is_dir():
            raise not_found(root)
        for subtask in self.subtasks or [each for each in SUBTASKS if (root / each).is_dir()]:
            texts, pictures = _folders(root / subtask)
            for file in sorted(texts.glob("*.txt")):
                yield from self._lines(subtask, file, pictures)

    def _lines(self, subtask: str, file: Path, pictures: Path) -> Iterator[tuple[str, object]]:
        root = Path(self.annotations)
        picture = next((each for each in (pictures / f"{file.stem}{end}" for end in SUFFIXES) if each.is_file()), None)
        # One that is missing is named by the check of images.
        picture = picture or pictures / f"{file.stem}{SUFFIXES[0]}"
        for count, (number, line) in enumerate(lines(file), 1):
            id = f"{subtask}/{picture.name}#{count}"
            name, place = str(picture.relative_to(root)), f"{file.relative_to(root)}:{number}"
            yield place, {"id": id, "subtask": subtask, "image": name, "line": line}

    def _questions(self, record: object) -> Iterator[Question]:
        assert isinstance(record, dict)
        try:
            line = record["line"].decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise RecordError(f"found a byte that is not UTF-8 at offset {error.start}, expected UTF-8 text") from None
        columns = line.split("\t")
        if len(columns) != 2 or columns[1].strip().lower() not in ("yes", "no"):
            raise RecordError(f"found {line!r}, expected a question, a tab, and Yes or No")
        question = text_of({"question": columns[0].strip().removesuffix(ENDING)}, "question", MAX_CAPTION)
        answer = columns[1].strip().lower()
        yield Question(record["id"], [record["image"]], question, answer, question_type=record["subtask"])


def _folders(subtask: Path) -> tuple[Path, Path]:
    """Where the text files and the pictures of a subtask stand."""
    if (subtask / "questions_answers_YN").is_dir():
        return subtask / "questions_answers_YN", subtask / "images"
    if not subtask.is_dir():
        raise not_found(subtask)
    return subtask, subtask
