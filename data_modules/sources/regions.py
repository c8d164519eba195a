"""Things in images and their boxes: one way to turn a pair of an expression and a box into a question."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar, Literal, get_args

from data_modules.sources.files import BadRecords, Entry
from data_modules.sources.questions import Question, QuestionSource
from data_modules.sources.records import RecordError, field
from data_modules.sources.source import Published
from lightning_mllm.boxes import FRAMES, Box, Frame, named, of_pixels, write

Ask = Literal["box", "expression"]

_NUMBER = re.compile(r"\d*\.?\d+")


def expressions(title: str, paper: str, *files: str) -> Published:
    """A published set of expressions and the boxes that they mean."""
    tasks = ("grounding", "caption")
    return Published(title=title, paper=paper, family="referring", tasks=tasks, held_in=None, files=files)


class BoxSource(QuestionSource):
    """Questions with boxes in them, or in their answers.

    Boxes are published in pixels; the size of the image comes from the annotations, no image is read.

    Args:
        annotations: the file.
        images: the folder that image names are relative to.
        dialect: how boxes are spelled: 'cogvlm', 'ferret' or 'llava' (lightning_mllm/boxes.py).
        frame: what coordinates are shares of: the 'image', or the 'square' that it is padded to. It must be what the
            model sees, or training is refused: 'square' where the processor's `fit` is 'pad', 'image' where it is
            'squash'; 'crop' and random areas show another part of the image than the boxes tell of. An image of another
            size than the annotations say is a bad sample.
        prompt, bad_records: as in QuestionSource.
    """

    task: str = "grounding"
    family: str = "referring"
    key: ClassVar[str] = "id"

    def __init__(
        self,
        annotations: str,
        images: str,
        dialect: str,
        frame: Frame = "image",
        prompt: str | None = None,
        bad_records: BadRecords = "refuse",
    ) -> None:
        super().__init__(annotations, images, prompt, bad_records=bad_records)
        named(dialect)
        if frame not in FRAMES:
            raise ValueError(f"frame: found {frame!r}, expected {' or '.join(map(repr, FRAMES))}")
        self.dialect = dialect
        self.frame: Frame = frame  # pyright: ignore[reportIncompatibleVariableOverride]

    def box(self, box: Sequence[float], size: tuple[int, int]) -> Box:
        """From left, top, width and height in an image of `size`; RecordError for what is no box there."""
        try:
            left, top, width, height = box
            return of_pixels(left, top, width, height, *size, frame=self.frame)
        except ValueError as rule:
            raise RecordError(str(rule)) from None

    def _entry_of(self, asked: Question) -> Entry:
        """Each number of a box counts as a word: there are no blanks between those of some dialects."""
        entry = super()._entry_of(asked)
        return entry._replace(words=entry.words + len(_NUMBER.findall(asked.question + asked.answer)))

    def text(self, *boxes: Box) -> str:
        """Boxes as the source spells them."""
        return write(boxes, self.dialect)


class RegionSource(BoxSource):
    """Expressions, each meaning one thing in an image, and the box of the thing.

    Args:
        annotations, images, dialect, frame, prompt, bad_records: as in BoxSource.
        ask: what is asked for: the 'box' of an expression ("Where is the red cup?"), scored by its overlap with the
            true one; or an 'expression' for a box, scored as a caption.
    """

    asks: tuple[str, ...] = ("expression",)
    knows: tuple[str, ...] = ("expression",)

    def __init__(
        self,
        annotations: str,
        images: str,
        dialect: str,
        ask: Ask = "box",
        frame: Frame = "image",
        prompt: str | None = None,
        bad_records: BadRecords = "refuse",
    ) -> None:
        if ask not in get_args(Ask):
            raise ValueError(f"ask: found {ask!r}, expected 'box' or 'expression'")
        self.ask: Ask = ask
        if ask == "expression":
            self.family, self.task, self.asks, self.knows = "region", "caption", ("box",), ("box",)
        super().__init__(annotations, images, dialect, frame, prompt, bad_records)

    def _region(
        self, id: str, image: str, expression: str, box: Box, size: tuple[int, int], others: Sequence[str] = ()
    ) -> Question:
        """The question about a region of an image of `size`; `others` are further expressions that people gave it."""
        text = self.text(box)
        if self.ask == "box":
            return Question(id, [image], expression, text, fields={"expression": expression}, size=size)
        return Question(id, [image], text, expression, [expression, *others], fields={"box": text}, size=size)


def size_of(record: object) -> tuple[int, int]:
    """Width and height of an image by its record; RecordError where they are missing."""
    width, height = field(record, "width", int), field(record, "height", int)
    if width < 1 or height < 1:
        raise RecordError(f"is {width} x {height} pixels, expected at least 1 x 1")
    return width, height
