"""Referring expressions for things in COCO's images: RefCOCO, RefCOCO+ (arXiv 1608.00272) and RefCOCOg (1511.02283)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from data_modules.sources.coco import images_in, numbers_of
from data_modules.sources.files import BadRecords
from data_modules.sources.questions import Question
from data_modules.sources.records import MAX_CAPTION, Record, RecordError, field, read_json, text_of
from data_modules.sources.regions import Ask, RegionSource, expressions, size_of
from data_modules.sources.source import Published
from lightning_mllm.boxes import Frame


class RefCoco(RegionSource):
    """MDETR's (arXiv 2104.12763) finetune_refcoco_train.json and the like: COCO's form, with an entry of `images` for
    each expression: {images: [{id, file_name, width, height, caption}], annotations: [{id, image_id, bbox}]}, one box
    each.

    The small world's grounding/refs_SPLIT.json has this form.

    Args:
        annotations: the file.
        images: the folder of the images' `file_name`; for the published files COCO's train2014.
        dialect, ask, frame, prompt, bad_records: as in RegionSource.
    """

    published: ClassVar[tuple[Published, ...]] = tuple(
        expressions(title, paper, f"finetune_{title.lower()}_train.json")
        for title, paper in (("RefCOCO", "1608.00272"), ("RefCOCO+", "1608.00272"), ("RefCOCOg", "1511.02283"))
    )

    def _records(self) -> Iterator[tuple[str, object]]:
        refuse_pickle(self.annotations)
        return images_in(self.annotations, read_json(self.annotations))

    def _questions(self, record: object) -> Iterator[Question]:
        boxes = field(record, "annotations", list)
        if len(boxes) != 1:
            raise RecordError(f"has {len(boxes)} annotations, expected the one that the expression means")
        expression = text_of(record, "caption", MAX_CAPTION)
        size = size_of(record)
        box = self.box(numbers_of(boxes[0], "bbox", 4), size)
        yield self._region(str(field(record, "id", int)), field(record, "file_name", str), expression, box, size)


class RefCocoRefs(RegionSource):
    """The authors' two files, the refs as JSON: [{ref_id, ann_id, image_id, split, sentences: [{sent_id, sent}]}], and
    instances.json, which is COCO's: {images: [{id, file_name, width, height}], annotations: [{id, image_id, bbox}]}.

    The refs are published as a pickle, which is refused. Each sentence is a sample; where an expression is asked for,
    all sentences of a thing are the references.

    Args:
        annotations: refs.json.
        instances: instances.json.
        split: which refs: 'train', 'val', 'test', 'testA' or 'testB'.
        images: the folder of the images' `file_name`: COCO's train2014.
        dialect, ask, frame, prompt, bad_records: as in RegionSource.
    """

    published: ClassVar[tuple[Published, ...]] = (
        expressions("RefCOCO (refs as JSON)", "1608.00272", "refs.json", "instances.json"),
    )
    key: ClassVar[str] = "ref_id"

    def __init__(
        self,
        annotations: str,
        instances: str,
        split: str,
        images: str,
        dialect: str,
        ask: Ask = "box",
        frame: Frame = "image",
        prompt: str | None = None,
        bad_records: BadRecords = "refuse",
    ) -> None:
        super().__init__(annotations, images, dialect, ask, frame, prompt, bad_records)
        self.instances, self.split = str(instances), split
        self._boxes: dict[int, tuple[Record, Record]] = {}

    def _records(self) -> Iterator[tuple[str, object]]:
        refuse_pickle(self.annotations)
        refs = read_json(self.annotations)
        if not isinstance(refs, list):
            raise ValueError(f"{self.annotations}: found no list, expected the list of refs")
        splits = {record.get("split") for record in refs if isinstance(record, dict)} - {None}
        if self.split not in splits:
            raise ValueError(
                f"{self.annotations}: split is '{self.split}', expected {' or '.join(sorted(map(str, splits)))}"
            )
        images = images_in(self.instances, read_json(self.instances))
        self._boxes = {each["id"]: (image, each) for _, image in images for each in image["annotations"]}
        yield from ((f"record {index}", record) for index, record in enumerate(refs))

    def _questions(self, record: object) -> Iterator[Question]:
        if field(record, "split", str) != self.split:
            return
        thing, own = field(record, "ann_id", int), field(record, "image_id", int)
        if thing not in self._boxes:
            raise RecordError(f"ann_id {thing} is not in {self.instances}, expected one of its annotations")
        image, annotation = self._boxes[thing]
        if image["id"] != own:
            raise RecordError(f"image_id is {own}, expected {image['id']} as of annotation {thing} in {self.instances}")
        size = size_of(image)
        box = self.box(numbers_of(annotation, "bbox", 4), size)
        sentences = field(record, "sentences", list)
        if not sentences:
            raise RecordError("'sentences' is empty, expected at least one")
        texts = [text_of(each, "sent", MAX_CAPTION) for each in sentences]
        for place, (each, text) in enumerate(zip(sentences, texts, strict=True)):
            others = [*texts[:place], *texts[place + 1 :]]
            name = field(image, "file_name", str)
            yield self._region(str(field(each, "sent_id", int)), name, text, box, size, others)


def refuse_pickle(path: str) -> None:
    """ValueError where a file is the pickle that the authors publish."""
    if path.endswith((".p", ".pkl", ".pickle")):
        raise ValueError(
            f"{path}: found a pickle, which can run any code when it is read, expected JSON: take MDETR's"
            " finetune_refcoco_train.json, or write its list to a refs.json where you trust it"
        )
