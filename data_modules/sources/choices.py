"""Multiple choice that InstructBLIP (arXiv 2305.06500) tests on alone: IconQA and ScienceQA, of the same authors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar, Literal

from data_modules.sources.files import BadRecords
from data_modules.sources.questions import Question, QuestionSource
from data_modules.sources.records import (
    MAX_CAPTION,
    RecordError,
    field,
    keyed_records_in,
    list_in,
    one_of,
    read_json,
    text_of,
    texts_of,
)
from data_modules.sources.source import Published

FOLDERS = ("train", "val", "test")
"""The `split` of a problem; a split that is asked for may mix them (trainval) or be a part of one (minitest)."""


class Problems(QuestionSource):
    """problems.json, {id: problem}, with pid_splits.json, {split: [ids]}.

    Args:
        annotations: problems.json.
        images: the folder of the splits' folders of images.
        splits: pid_splits.json.
        split: which of its lists.
        prompt, bad_records: as in QuestionSource.
    """

    family: str = "multiple_choice"
    task: str = "choice"
    key: ClassVar[str] = "id"

    def __init__(
        self, annotations: str, images: str, splits: str, split: str, prompt: str, bad_records: BadRecords
    ) -> None:
        super().__init__(annotations, images, prompt, bad_records=bad_records)
        self.splits, self.split = str(splits), split

    def _records(self) -> Iterator[tuple[str, object]]:
        problems = dict(keyed_records_in(self.annotations, self.key))
        content = read_json(self.splits)
        if isinstance(content, dict) and self.split not in content:
            raise ValueError(f"{self.splits}: split is '{self.split}', expected {' or '.join(content) or 'one in it'}")
        for id in list_in(self.splits, content, self.split):
            place = f"record '{id}'"
            if place not in problems:
                raise ValueError(
                    f"{self.splits}: '{self.split}' names the problem '{id}', expected one in {self.annotations}"
                )
            yield place, problems[place]


def chosen(problem: object) -> tuple[list[str], str]:
    """The choices of a problem and the right one of them; RecordError if it has none."""
    choices, right = texts_of(problem, "choices", MAX_CAPTION), field(problem, "answer", int)
    if not 0 <= right < len(choices):
        raise RecordError(f"'answer' is {right}, expected 0 to {len(choices) - 1}")
    return choices, choices[right]


class IconQa(Problems):
    """IconQA: problems {question, choices, answer, ques_type, split}; `answer` is an index, or a text to fill in.

    Args:
        annotations: iconqa_data/problems.json.
        images: iconqa_data/iconqa, which holds SPLIT/QUES_TYPE/ID/image.png.
        form: 'choose_txt' names the choices, of which one is right; 'fill_in_blank' asks for a text.
        splits: iconqa_data/pid_splits.json, whose lists are called QUES_TYPE_SPLIT.
        split: train, val, test, trainval, minitrain, minival or minitest.
        prompt, bad_records: as in QuestionSource; None for the short answer of the form's family.
    """

    published: ClassVar[tuple[Published, ...]] = (
        Published(
            title="IconQA",
            paper="2110.13214",
            family="multiple_choice",
            tasks=("choice", "exact"),
            held_in=False,
            files=("problems.json", "pid_splits.json"),
        ),
    )

    def __init__(
        self,
        annotations: str,
        images: str,
        form: Literal["choose_txt", "fill_in_blank"],
        splits: str,
        split: str,
        prompt: str | None = None,
        bad_records: BadRecords = "refuse",
    ) -> None:
        if form not in ("choose_txt", "fill_in_blank"):
            raise ValueError(f"form: found {form!r}, expected 'choose_txt' or 'fill_in_blank'")
        if form == "fill_in_blank":
            self.family, self.task = "vqa", "exact"
        asked = f"{self.family}/short_answer" if prompt is None else prompt
        super().__init__(annotations, images, splits, f"{form}_{split}", asked, bad_records)
        self.form = form

    def _questions(self, record: object) -> Iterator[Question]:
        question, folder = text_of(record, "question", MAX_CAPTION), one_of(record, "split", FOLDERS)
        id = field(record, "id", str)
        images = [f"{folder}/{one_of(record, 'ques_type', (self.form,))}/{id}/image.png"]
        if self.form == "fill_in_blank":
            yield Question(id, images, question, text_of(record, "answer", MAX_CAPTION))
        else:
            choices, answer = chosen(record)
            yield Question(id, images, question, answer, options=choices, candidates=choices)


class ScienceQa(Problems):
    """ScienceQA: problems {question, choices, answer, hint, image, lecture, split}; `answer` is an index.

    Args:
        annotations: problems.json.
        images: the folder that holds SPLIT/ID/image.png.
        splits: pid_splits.json.
        split: train, val, test, trainval, minitrain, minival or minitest.
        with_image: leave out the problems whose `image` is null; InstructBLIP does.
        lecture: whether the context has the lecture behind the hint.
        prompt, bad_records: as in QuestionSource.
    """

    published: ClassVar[tuple[Published, ...]] = (
        replace(IconQa.published[0], title="ScienceQA", paper="2209.09513", tasks=("choice",)),
    )

    def __init__(
        self,
        annotations: str,
        images: str,
        splits: str,
        split: str,
        with_image: bool = True,
        lecture: bool = False,
        prompt: str = "multiple_choice/answer",
        bad_records: BadRecords = "refuse",
    ) -> None:
        super().__init__(annotations, images, splits, split, prompt, bad_records)
        self.with_image, self.lecture = with_image, lecture

    def _questions(self, record: object) -> Iterator[Question]:
        question, (choices, answer) = text_of(record, "question", MAX_CAPTION), chosen(record)
        folder, image = one_of(record, "split", FOLDERS), field(record, "image", str, type(None))
        told = [field(record, "hint", str), field(record, "lecture", str) if self.lecture else ""]
        context = " ".join(text.strip() for text in told if text.strip())
        if image is None and self.with_image:
            return
        id = field(record, "id", str)
        images = [] if image is None else [f"{folder}/{id}/{image}"]
        yield Question(id, images, question, answer, (), choices, context=context, candidates=choices)
