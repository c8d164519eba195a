"""Captions with the boxes of what they name: Flickr30k Entities (arXiv 1505.04870) and the small world."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from data_modules.sources.coco import images_in, numbers_of
from data_modules.sources.questions import Question
from data_modules.sources.records import MAX_CAPTION, RecordError, field, read_json
from data_modules.sources.regions import BoxSource, size_of
from data_modules.sources.source import Published
from lightning_mllm.boxes import Box


class GroundedCaptions(BoxSource):
    """MDETR's (arXiv 2104.12763) final_flickr_separateGT_train.json and the like: COCO's form, with an entry of
    `images` for each caption: {images: [{id, file_name, width, height, caption}], annotations: [{id, image_id, bbox,
    tokens_positive: [[start, end], ..]}]}, where the spans of characters are the phrase that the box is meant by.

    What is learned is the caption with the boxes behind their phrases ("a dog [[010,020,300,400]] on a sofa"); the
    caption alone is a reference too. Captions without a box are left out. The small world's
    grounding/captions_SPLIT.json has this form.

    Args:
        annotations: the file.
        images: the folder of the images' `file_name`.
        dialect, frame, prompt, bad_records: as in BoxSource.
    """

    published: ClassVar[tuple[Published, ...]] = (
        Published(
            title="Flickr30K Entities",
            paper="1505.04870",
            family="grounded_caption",
            tasks=(),
            held_in=None,
            files=("final_flickr_separateGT_train.json",),
        ),
    )

    task: str = "grounded_caption"
    family: str = "grounded_caption"
    asks: tuple[str, ...] = ()
    knows: tuple[str, ...] = ()

    def _records(self) -> Iterator[tuple[str, object]]:
        return images_in(self.annotations, read_json(self.annotations))

    def _questions(self, record: object) -> Iterator[Question]:
        caption, size = field(record, "caption", str), size_of(record)
        if len(caption) > MAX_CAPTION:
            raise RecordError(f"'caption' has {len(caption)} characters, expected at most {MAX_CAPTION}")
        behind: dict[int, list[Box]] = {}
        for annotation in field(record, "annotations", list):
            try:
                end = _end(annotation, len(caption))
                behind.setdefault(end, []).append(self.box(numbers_of(annotation, "bbox", 4), size))
            except RecordError as rule:
                raise RecordError(f"annotation {annotation['id']}: {rule}") from None
        if not behind:
            return
        text, start = "", 0
        for end in sorted(behind):
            text += f"{caption[start:end]} {self.text(*behind[end])}"
            start = end
        text = (text + caption[start:]).strip()
        id, image = field(record, "id", int), field(record, "file_name", str)
        yield Question(str(id), [image], "", text, [text, caption], size=size)


def _end(annotation: object, length: int) -> int:
    """Where the last span of a box's phrase ends, in a caption of so many characters."""
    spans = field(annotation, "tokens_positive", list)
    if not spans:
        raise RecordError("'tokens_positive' is empty, expected at least one span")
    for span in spans:
        start, end = (int(each) for each in numbers_of({"tokens_positive": span}, "tokens_positive", 2))
        if not 0 <= start < end <= length:
            raise RecordError(f"the span {start} to {end} is not in the caption of {length} characters")
    return max(int(end) for _, end in spans)
