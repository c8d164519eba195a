"""POPE (Li et al. 2023, arXiv 2305.10355): does a model see objects that are not there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from data_modules.sources.files import BadRecords
from data_modules.sources.questions import Question, QuestionSource
from data_modules.sources.records import MAX_CAPTION, field, lines, one_of, text_of
from data_modules.sources.source import Published


class Pope(QuestionSource):
    """coco_pope_SPLIT.json of RUCAIBox/POPE: a line for each question, {question_id, image, text, label: yes or no}.

    A file has 3,000 questions about 500 images of COCO val2014, half of which are answered with yes; the splits differ
    in how the objects that are not there are drawn. Scores are told of each split, so that each is a set of its own.

    Args:
        annotations: output/coco/coco_pope_random.json, _popular.json or _adversarial.json.
        images: the folder of COCO's val2014.
        prompt: as in QuestionSource; as released, LLaVA asks for a word.
        bad_records: as in QuestionSource.
    """

    published: ClassVar[tuple[Published, ...]] = (
        Published(
            title="POPE",
            paper="2305.10355",
            family="single_word",
            tasks=("pope",),
            held_in=None,
            files=("coco_pope_random.json", "coco_pope_popular.json", "coco_pope_adversarial.json"),
        ),
    )
    family: str = "single_word"
    task: str = "pope"

    def __init__(
        self, annotations: str, images: str, prompt: str = "single_word/llava", bad_records: BadRecords = "refuse"
    ) -> None:
        super().__init__(annotations, images, prompt, bad_records=bad_records)

    def _records(self) -> Iterator[tuple[str, object]]:
        return ((f":{number}", line) for number, line in lines(self.annotations))

    def _questions(self, record: object) -> Iterator[Question]:
        id, image = field(record, "question_id", int, str), text_of(record, "image", MAX_CAPTION)
        yield Question(str(id), [image], text_of(record, "text", MAX_CAPTION), one_of(record, "label", ("yes", "no")))
