"""Texts that are true of an image or not, that InstructBLIP (arXiv 2305.06500) tests on alone: VSR and Hateful Memes.

Both are lines of JSON with a `label` of 0 or 1, which becomes a closed set of answers: the likeliest one is the
prediction, how likely it is the score.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

from data_modules.sources.files import BadRecords
from data_modules.sources.questions import Question, QuestionSource
from data_modules.sources.records import MAX_CAPTION, RecordError, field, text_of
from data_modules.sources.source import Published


def label_of(record: object) -> bool:
    """The `label`, which must be 0 or 1; RecordError otherwise."""
    if (label := field(record, "label", int)) not in (0, 1):
        raise RecordError(f"'label' is {label}, expected 0 or 1")
    return bool(label)


class Vsr(QuestionSource):
    """VSR's SPLIT.jsonl, of the random split or the zero-shot one: {image, caption, label, relation} a line.

    Args:
        annotations: the file: splits/zeroshot/test.jsonl, ...
        images: the folder of the images, which are COCO's.
        positive, negative: how a caption is called true or false: the first word of each is learned, all are accepted
            and ranked. InstructBLIP ranks several words of a class (sec. 2.4, "verbalizers").
        prompt, bad_records: as in QuestionSource.
    """

    published: ClassVar[tuple[Published, ...]] = (
        Published(
            title="VSR",
            paper="2205.00363",
            family="yes_no",
            tasks=("choice",),
            held_in=False,
            files=("zeroshot/test.jsonl", "random/test.jsonl"),
        ),
    )
    family: str = "yes_no"
    task: str = "choice"
    key: ClassVar[str] = "image"

    def __init__(
        self,
        annotations: str,
        images: str,
        positive: Sequence[str] = ("yes", "true"),
        negative: Sequence[str] = ("no", "false"),
        prompt: str = "yes_no/true_or_false",
        bad_records: BadRecords = "refuse",
    ) -> None:
        super().__init__(annotations, images, prompt, bad_records=bad_records)
        if not positive or not negative or set(positive) & set(negative):
            raise ValueError(f"positive, negative: found {positive} and {negative}, expected different words in each")
        self.positive, self.negative = tuple(positive), tuple(negative)

    def _questions(self, record: object) -> Iterator[Question]:
        image, caption = text_of(record, "image", MAX_CAPTION), text_of(record, "caption", MAX_CAPTION)
        words = self.positive if label_of(record) else self.negative
        # Records have no id; no caption is said twice of one image.
        id, candidates = f"{image} {caption}", (*self.positive, *self.negative)
        yield Question(id, [image], caption, words[0], words, candidates=candidates)


class HatefulMemes(QuestionSource):
    """Hateful Memes' SPLIT.jsonl: {id, img: "img/01234.png", label, text} a line; `text` is written on the image.

    Args:
        annotations: the file of a split whose labels are public (train, dev, dev_seen, test_seen, ..).
        images: the folder that holds img/.
        prompt, answers, bad_records: as in QuestionSource.
    """

    published: ClassVar[tuple[Published, ...]] = (
        Published(
            title="Hateful Memes",
            paper="2005.04790",
            family="meme",
            tasks=("auc",),
            held_in=False,
            files=("dev.jsonl",),
        ),
    )
    family: str = "meme"
    task: str = "auc"
    key: ClassVar[str] = "id"

    def _questions(self, record: object) -> Iterator[Question]:
        id, image = field(record, "id", int, str), text_of(record, "img", MAX_CAPTION)
        text, answer = text_of(record, "text", MAX_CAPTION), "yes" if label_of(record) else "no"
        yield Question(str(id), [image], text, answer, candidates=("yes", "no"))
