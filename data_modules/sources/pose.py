"""The joints of people in COCO's images (arXiv 1405.0312, keypoints of 2016)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from data_modules.sources.coco import images_in, numbers_of
from data_modules.sources.files import BadRecords
from data_modules.sources.questions import Question
from data_modules.sources.records import MAX_CAPTION, RecordError, field, list_in, read_json, refused, texts_of
from data_modules.sources.regions import BoxSource, size_of
from data_modules.sources.source import Published
from lightning_mllm.boxes import Frame, point_of_pixels, write_point


class CocoPose(BoxSource):
    """COCO's person_keypoints_*.json: {images: [{id, file_name, width, height}], annotations: [{id, image_id, bbox,
    category_id, iscrowd, keypoints: [x, y, v, ..]}], categories: [{id, name, keypoints: [names]}]}.

    A sample is a person with a box; the answer names the joints that people labelled, seen or hidden, and says where
    they are: "nose [0.12, 0.34], left eye [0.13, 0.33]". Crowds and people without a labelled joint are left out.

    Args:
        annotations: the keypoints file.
        images: the folder of the images' `file_name`.
        dialect: how boxes and points are spelled.
        frame, prompt, bad_records: as in BoxSource.
    """

    published: ClassVar[tuple[Published, ...]] = (
        Published(
            title="COCO keypoints",
            paper="1405.0312",
            family="pose",
            tasks=(),
            held_in=None,
            files=("person_keypoints_train2017.json",),
        ),
    )
    task: str = "pose"
    family: str = "pose"
    asks: tuple[str, ...] = ("box",)
    knows: tuple[str, ...] = ("box",)

    def __init__(
        self,
        annotations: str,
        images: str,
        dialect: str,
        frame: Frame = "image",
        prompt: str | None = None,
        bad_records: BadRecords = "refuse",
    ) -> None:
        super().__init__(annotations, images, dialect, frame, prompt, bad_records)
        self._joints: dict[int, list[str]] = {}

    def _records(self) -> Iterator[tuple[str, object]]:
        content = read_json(self.annotations)
        for index, category in enumerate(list_in(self.annotations, content, "categories")):
            try:
                names = texts_of(category, "keypoints", MAX_CAPTION)
                self._joints[field(category, "id", int)] = [name.replace("_", " ") for name in names]
            except RecordError as rule:
                raise refused(self.annotations, f"categories[{index}]", category, rule) from None
        return images_in(self.annotations, content)

    def _questions(self, record: object) -> Iterator[Question]:
        size = size_of(record)
        for person in field(record, "annotations", list):
            try:
                if field(person, "iscrowd", int) or not (joints := self._where(person, size)):
                    continue
                box = self.text(self.box(numbers_of(person, "bbox", 4), size))
            except RecordError as rule:
                raise RecordError(f"annotation {person['id']}: {rule}") from None
            answer = ", ".join(f"{name} {point}" for name, point in joints)
            image = field(record, "file_name", str)
            yield Question(str(person["id"]), [image], box, answer, fields={"box": box}, size=size)

    def _where(self, person: object, size: tuple[int, int]) -> list[tuple[str, str]]:
        """Name and point of each labelled joint."""
        if (category := field(person, "category_id", int)) not in self._joints:
            raise RecordError(f"category_id is {category}, expected one of the {len(self._joints)} categories")
        names, (width, height) = self._joints[category], size
        numbers = numbers_of(person, "keypoints", 3 * len(names))
        found = []
        for name, x, y, labelled in zip(names, numbers[::3], numbers[1::3], numbers[2::3], strict=True):
            if labelled not in (0, 1, 2):
                raise RecordError(f"the {name} has the flag {labelled:g}, expected 0, 1 or 2")
            if not labelled:
                continue
            if not (0 <= x <= width and 0 <= y <= height):
                raise RecordError(f"the {name} is at {x:g}, {y:g}, expected a place in {width} x {height} pixels")
            found.append((name, write_point(*point_of_pixels(x, y, *size, self.frame), self.dialect)))
        return found
