"""POPE (Li et al. 2023, arXiv 2305.10355): does a model see objects that are not there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from random import Random
from typing import ClassVar, Literal, get_args

from data_modules.sources.coco import images_in, names_of
from data_modules.sources.files import BadRecords
from data_modules.sources.questions import Question, QuestionSource
from data_modules.sources.records import MAX_CAPTION, RecordError, field, lines, one_of, read_json, text_of
from data_modules.sources.source import Published

Absent = Literal["random", "popular", "adversarial"]


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


class PopeObjects(QuestionSource):
    """The questions of POPE about images of one's own, made from COCO's instances_*.json by its rules (sec. 4.2).

    Each image is asked about as many objects that are there, drawn at random, as objects that are not: drawn at random,
    the ones that most images of the file have (popular), or those that most often stand beside what the image has
    (adversarial). Images with too few of either are left out.

    Args:
        annotations: {images: [{id, file_name}], annotations: [{image_id, category_id}], categories: [{id, name}]}.
        images: the folder of the images' `file_name`.
        absent: how objects that are not there are chosen.
        each: how many objects of either kind an image is asked about; POPE has 3.
        seed: of what is drawn.
        prompt, bad_records: as in Pope.
    """

    family: str = "single_word"
    task: str = "pope"
    key: ClassVar[str] = "id"

    def __init__(
        self,
        annotations: str,
        images: str,
        absent: Absent = "random",
        each: int = 3,
        seed: int = 0,
        prompt: str = "single_word/llava",
        bad_records: BadRecords = "refuse",
    ) -> None:
        super().__init__(annotations, images, prompt, bad_records=bad_records)
        if absent not in get_args(Absent):
            raise ValueError(f"absent: found {absent!r}, expected {', '.join(get_args(Absent))}")
        if each < 1:
            raise ValueError(f"each: found {each}, expected at least 1")
        self.absent, self.each, self.seed = absent, each, seed
        self._names: dict[int, str] = {}
        self._seen: Counter[int] = Counter()
        self._beside: Counter[tuple[int, int]] = Counter()

    def _records(self) -> Iterator[tuple[str, object]]:
        content = read_json(self.annotations)
        self._names = names_of(self.annotations, content)
        rows = list(images_in(self.annotations, content))
        self._seen, self._beside = Counter(), Counter()
        for _, record in rows:
            found = _categories_of(record)
            self._seen.update(found)
            self._beside.update((one, other) for one in found for other in found if one != other)
        return iter(rows)

    def _questions(self, record: object) -> Iterator[Question]:
        id, image = field(record, "id", int), field(record, "file_name", str)
        there = _categories_of(record)
        if odd := [each for each in there if each not in self._names]:
            raise RecordError(f"category_id is {odd[0]}, expected one of the {len(self._names)} categories")
        missing = [each for each in self._names if each not in there]
        if min(len(there), len(missing)) < self.each:
            return
        draw = Random(f"{self.seed} {id}")
        # Shuffled first: of equally frequent ones any may come.
        missing = draw.sample(missing, len(missing))
        if self.absent == "popular":
            missing.sort(key=lambda other: -self._seen[other])
        elif self.absent == "adversarial":
            missing.sort(key=lambda other: -sum(self._beside[one, other] for one in there))
        asked = [(each, "yes") for each in draw.sample(there, self.each)]
        for category, label in [*asked, *((each, "no") for each in missing[: self.each])]:
            name = self._names[category]
            article = "an" if name[0].lower() in "aeiou" else "a"
            yield Question(f"{id}-{category}", [image], f"Is there {article} {name} in the image?", label)


def _categories_of(record: object) -> list[int]:
    """Those that an image shows, in the order of their numbers."""
    return sorted({field(each, "category_id", int) for each in field(record, "annotations", list)})
