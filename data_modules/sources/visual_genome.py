"""All that is in an image, as people wrote it down: Visual Genome (arXiv 1602.07332), in its own files.

Images are named IMAGE_ID.jpg, the contents of the published VG_100K and VG_100K_2 together. The files about boxes do
not say how large an image is; image_data.json does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import ClassVar

from data_modules.sources.files import BadRecords
from data_modules.sources.questions import Question, QuestionSource
from data_modules.sources.records import MAX_CAPTION, RecordError, field, read_json, records_in, refused, text_of
from data_modules.sources.regions import Ask, BoxSource, RegionSource, expressions, size_of
from data_modules.sources.source import Published
from lightning_mllm.boxes import Box, Frame


class VisualGenomeQa(QuestionSource):
    """question_answers.json: [{id, qas: [{qa_id, image_id, question, answer}]}], one record an image.

    Args:
        annotations: the file.
        images: the folder of the images.
        prompt, bad_records: as in QuestionSource.
    """

    task: str = "exact"
    key: ClassVar[str] = "id"

    def __init__(
        self, annotations: str, images: str, prompt: str | None = None, bad_records: BadRecords = "refuse"
    ) -> None:
        super().__init__(annotations, images, prompt, bad_records=bad_records)

    def _questions(self, record: object) -> Iterator[Question]:
        image = field(record, "id", int)
        for asked in field(record, "qas", list):
            id, own = field(asked, "qa_id", int), field(asked, "image_id", int)
            if own != image:
                raise RecordError(f"question {id} is about the image {own}, expected {image} as its record")
            question, answer = text_of(asked, "question", MAX_CAPTION), text_of(asked, "answer", MAX_CAPTION)
            yield Question(str(id), [f"{image}.jpg"], question, answer)


class VisualGenomeRegions(RegionSource):
    """region_descriptions.json: [{id, regions: [{region_id, image_id, phrase, x, y, width, height}]}].

    Args:
        annotations: the file.
        sizes: image_data.json: [{image_id, width, height}].
        images: the folder of the images.
        dialect, ask, frame, prompt, bad_records: as in RegionSource.
    """

    published: ClassVar[tuple[Published, ...]] = (
        expressions("Visual Genome regions", "1602.07332", "region_descriptions.json", "image_data.json"),
    )

    def __init__(
        self,
        annotations: str,
        sizes: str,
        images: str,
        dialect: str,
        ask: Ask = "box",
        frame: Frame = "image",
        prompt: str | None = None,
        bad_records: BadRecords = "refuse",
    ) -> None:
        super().__init__(annotations, images, dialect, ask, frame, prompt, bad_records)
        self.sizes = str(sizes)
        self._sizes: dict[int, tuple[int, int]] = {}

    def _records(self) -> Iterator[tuple[str, object]]:
        self._sizes = sizes_in(self.sizes)
        return records_in(self.annotations)

    def _questions(self, record: object) -> Iterator[Question]:
        image = field(record, "id", int)
        for region in field(record, "regions", list):
            id, own = field(region, "region_id", int), field(region, "image_id", int)
            if own != image:
                raise RecordError(f"region {id} is in the image {own}, expected {image} as its record")
            phrase = text_of(region, "phrase", MAX_CAPTION)
            size = size_in(self.sizes, self._sizes, image)
            box = _inside(self, region, ("x", "y", "width", "height"), size, id)
            yield self._region(str(id), f"{image}.jpg", phrase, box, size)


class VisualGenomeObjects(VisualGenomeRegions):
    """objects.json: [{image_id, objects: [{object_id, names: [..], x, y, w, h}]}]; those whose first name no other
    object of the image has ("the clock").

    Args:
        annotations: the file.
        sizes, images: as in VisualGenomeRegions.
        dialect, ask, frame, prompt, bad_records: as in RegionSource.
    """

    published: ClassVar[tuple[Published, ...]] = (
        expressions("Visual Genome objects", "1602.07332", "objects.json", "image_data.json"),
    )
    key: ClassVar[str] = "image_id"

    def _questions(self, record: object) -> Iterator[Question]:
        image = field(record, "image_id", int)
        objects = [(field(each, "object_id", int), _name(each), each) for each in field(record, "objects", list)]
        counts = Counter(name for _, name, _ in objects)
        for id, name, each in objects:
            if counts[name] == 1:
                size = size_in(self.sizes, self._sizes, image)
                box = _inside(self, each, ("x", "y", "w", "h"), size, id)
                yield self._region(str(id), f"{image}.jpg", f"the {name}", box, size)


class VisualGenomeRelations(BoxSource):
    """How one thing relates to another, of relationships.json: [{image_id, relationships: [{relationship_id, predicate,
    subject: {name, x, y, w, h}, object: {name, x, y, w, h}}]}]; a `names` list stands for `name` in some records.

    Both things are named with their boxes; the answer is the predicate in lower case.

    The small world's grounding/relationships_SPLIT.json has this form.

    Args:
        annotations: the file.
        sizes: image_data.json: [{image_id, width, height}].
        images: the folder of the images.
        dialect: as in BoxSource.
        image_pattern: name of an image file; '{image_id:012d}.png' in the small world.
        frame, prompt, bad_records: as in BoxSource.
    """

    published: ClassVar[tuple[Published, ...]] = (
        Published(
            title="Visual Genome relations",
            paper="1602.07332",
            family="relation",
            tasks=("exact",),
            held_in=None,
            files=("relationships.json", "image_data.json"),
        ),
    )
    task: str = "exact"
    family: str = "relation"
    key: ClassVar[str] = "image_id"
    asks: tuple[str, ...] = ("subject", "subject_box")
    knows: tuple[str, ...] = ("subject", "subject_box", "object", "object_box")

    def __init__(
        self,
        annotations: str,
        sizes: str,
        images: str,
        dialect: str,
        image_pattern: str = "{image_id}.jpg",
        frame: Frame = "image",
        prompt: str | None = None,
        bad_records: BadRecords = "refuse",
    ) -> None:
        super().__init__(annotations, images, dialect, frame, prompt, bad_records)
        self.sizes, self.image_pattern = str(sizes), image_pattern
        self._sizes: dict[int, tuple[int, int]] = {}

    def _records(self) -> Iterator[tuple[str, object]]:
        self._sizes = sizes_in(self.sizes)
        return records_in(self.annotations)

    def _questions(self, record: object) -> Iterator[Question]:
        image = field(record, "image_id", int)
        for each in field(record, "relationships", list):
            id, size = field(each, "relationship_id", int), size_in(self.sizes, self._sizes, image)
            predicate = text_of(each, "predicate", MAX_CAPTION).lower()
            named = {}
            for role in ("subject", "object"):
                thing = field(each, role, dict)
                box = _inside(self, thing, ("x", "y", "w", "h"), size, id)
                named |= {role: _name(thing), f"{role}_box": self.text(box)}
            name = self.image_pattern.format(image_id=image)
            yield Question(str(id), [name], " ".join(named.values()), predicate, fields=named, size=size)


def sizes_in(path: str) -> dict[int, tuple[int, int]]:
    """Image id -> width and height, of image_data.json."""
    sizes: dict[int, tuple[int, int]] = {}
    content = read_json(path)
    if not isinstance(content, list):
        raise ValueError(f"{path}: found no list, expected the list of images (image_data.json)")
    for index, record in enumerate(content):
        try:
            if (id := field(record, "image_id", int)) in sizes:
                raise RecordError("the id occurs twice, expected different ones")
            sizes[id] = size_of(record)
        except RecordError as rule:
            raise refused(path, f"record {index}", record, rule, "image_id") from None
    return sizes


def size_in(path: str, sizes: dict[int, tuple[int, int]], image: int) -> tuple[int, int]:
    """The size of an image; RecordError where the file `path` does not have it."""
    if image not in sizes:
        raise RecordError(f"the image {image} is not in {path}, expected its size there")
    return sizes[image]


def _name(thing: object) -> str:
    if isinstance(thing, dict) and "name" not in thing and field(thing, "names", list):
        return text_of({"names": thing["names"][0]}, "names", MAX_CAPTION)
    return text_of(thing, "name", MAX_CAPTION)


def _inside(source: BoxSource, thing: object, keys: tuple[str, ...], size: tuple[int, int], id: int) -> Box:
    """A box by its four keys; RecordError names the region, object or relationship that it belongs to."""
    try:
        return source.box([field(thing, key, int, float) for key in keys], size)
    except RecordError as rule:
        raise RecordError(f"number {id}: {rule}") from None
