"""Things in COCO's images (arXiv 1405.0312) by their category: the one of a kind, or all of a kind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from data_modules.sources.coco import images_in, names_of, numbers_of
from data_modules.sources.files import BadRecords
from data_modules.sources.questions import Question
from data_modules.sources.records import RecordError, field, read_json
from data_modules.sources.regions import Ask, BoxSource, RegionSource, expressions, size_of
from data_modules.sources.source import Published
from lightning_mllm.boxes import Box, Frame


class CocoObjects(RegionSource):
    """Things that are the only one of their category in an image ("the dog").

    COCO's instances_*.json is {images: [{id, file_name, width, height}], annotations: [{id, image_id, category_id,
    bbox, iscrowd}], categories: [{id, name}]}.

    Args:
        annotations: the instances file.
        images: the folder of the images' `file_name`.
        dialect, ask, frame, prompt, bad_records: as in RegionSource.
    """

    published: ClassVar[tuple[Published, ...]] = (expressions("COCO objects", "1405.0312", "instances_train2017.json"),)

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
        super().__init__(annotations, images, dialect, ask, frame, prompt, bad_records)
        self._categories: dict[int, str] = {}

    def _records(self) -> Iterator[tuple[str, object]]:
        content = read_json(self.annotations)
        self._categories = names_of(self.annotations, content)
        return images_in(self.annotations, content)

    def _questions(self, record: object) -> Iterator[Question]:
        for category, boxes in _by_category(self, record, self._categories).items():
            if len(boxes) == 1:
                ((id, box),) = boxes
                name = f"the {self._categories[category]}"
                yield self._region(str(id), field(record, "file_name", str), name, box, size_of(record))


class CocoDetection(BoxSource):
    """COCO's instances_*.json, as CocoObjects reads it: all things of a category, asked for by its name.

    The answer is their boxes from left to right. Left out are categories of which an image shows a crowd that was
    annotated as one, since not all of its members have boxes, and those with more than `most` things.

    Args:
        annotations: the instances file.
        images: the folder of the images' `file_name`.
        dialect: as in BoxSource.
        most: things of a category in an image.
        frame, prompt, bad_records: as in BoxSource.
    """

    published: ClassVar[tuple[Published, ...]] = (
        Published(
            title="COCO detection",
            paper="1405.0312",
            family="detection",
            tasks=("detection",),
            held_in=None,
            files=("instances_train2017.json",),
        ),
    )

    task: str = "detection"
    family: str = "detection"
    asks: tuple[str, ...] = ("expression", "plural")
    knows: tuple[str, ...] = ("expression", "plural")

    def __init__(
        self,
        annotations: str,
        images: str,
        dialect: str,
        most: int = 20,
        frame: Frame = "image",
        prompt: str | None = None,
        bad_records: BadRecords = "refuse",
    ) -> None:
        super().__init__(annotations, images, dialect, frame, prompt, bad_records)
        if most < 1:
            raise ValueError(f"most: found {most}, expected at least 1")
        self.most = most
        self._categories: dict[int, str] = {}

    def _records(self) -> Iterator[tuple[str, object]]:
        content = read_json(self.annotations)
        self._categories = names_of(self.annotations, content)
        return images_in(self.annotations, content)

    def _questions(self, record: object) -> Iterator[Question]:
        for category, boxes in _by_category(self, record, self._categories).items():
            if len(boxes) <= self.most:
                name, text = self._categories[category], self.text(*sorted(box for _, box in boxes))
                id, image = field(record, "id", int), field(record, "file_name", str)
                fields = {"expression": name, "plural": plural(name)}
                yield Question(f"{id}-{category}", [image], name, text, fields=fields, size=size_of(record))


PLURALS = {"person": "people", "mouse": "mice", "knife": "knives", "tooth": "teeth", "foot": "feet"}
SAME = ("sheep", "scissors", "skis", "broccoli")


def plural(name: str) -> str:
    """Several of what a category calls one, in English: "people", "benches", "teddy bears"."""
    before, _, word = name.rpartition(" ")
    if word in SAME:
        many = word
    elif word in PLURALS:
        many = PLURALS[word]
    elif word.endswith(("s", "x", "z", "ch", "sh")):
        many = f"{word}es"
    elif word.endswith("y") and word[-2:-1] not in "aeiou":
        many = f"{word[:-1]}ies"
    else:
        many = f"{word}s"
    return f"{before} {many}" if before else many


def _by_category(source: BoxSource, record: object, categories: dict[int, str]) -> dict[int, list[tuple[int, Box]]]:
    """Category -> id and box of each of its things in an image; without categories that have a crowd."""
    size, found, crowds = size_of(record), dict[int, list[tuple[int, Box]]](), set[int]()
    for annotation in field(record, "annotations", list):
        try:
            category = field(annotation, "category_id", int)
            if category not in categories:
                raise RecordError(f"category_id is {category}, expected one of the {len(categories)} categories")
            if field(annotation, "iscrowd", int):
                crowds.add(category)
            else:
                box = source.box(numbers_of(annotation, "bbox", 4), size)
                found.setdefault(category, []).append((annotation["id"], box))
        except RecordError as rule:
            raise RecordError(f"annotation {annotation['id']}: {rule}") from None
    return {category: boxes for category, boxes in found.items() if category not in crowds}
