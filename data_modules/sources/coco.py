"""COCO's file of images and annotations (arXiv 1405.0312), in which others publish theirs too."""

from __future__ import annotations

from collections.abc import Iterator

from data_modules.sources.records import MAX_CAPTION, Record, RecordError, field, list_in, refused, text_of


def images_in(path: str, content: object) -> Iterator[tuple[str, Record]]:
    """Index of each image of {images: [{id}], annotations: [{id, image_id}]}, and its record with its `annotations`.

    Args:
        content: what is in the file `path`.

    Raises:
        ValueError: an id occurs twice, or an annotation is about no image of the file.
    """
    of: dict[int, list[Record]] = {}
    images = list(_rows(path, content, "images"))
    known = {image["id"] for _, image in images}
    for place, annotation in _rows(path, content, "annotations"):
        try:
            if (image := field(annotation, "image_id", int)) not in known:
                raise RecordError(f"image_id {image} is not in 'images', expected one of its {len(known)} ids")
        except RecordError as rule:
            raise refused(path, place, annotation, rule) from None
        of.setdefault(image, []).append(annotation)
    for place, image in images:
        yield place, {**image, "annotations": of.pop(image["id"], [])}


def names_of(path: str, content: object) -> dict[int, str]:
    """Id of each category -> its name, of {categories: [{id, name}]}."""
    names: dict[int, str] = {}
    for place, category in _rows(path, content, "categories"):
        try:
            names[category["id"]] = text_of(category, "name", MAX_CAPTION)
        except RecordError as rule:
            raise refused(path, place, category, rule) from None
    return names


def numbers_of(record: object, key: str, count: int) -> list[float]:
    """`record[key]`, a list of so many numbers; RecordError otherwise."""
    found = field(record, key, list)
    if odd := [each for each in found if type(each) not in (int, float)]:
        raise RecordError(f"'{key}' holds {odd[0]!r}, expected numbers")
    if len(found) != count:
        raise RecordError(f"'{key}' has {len(found)} numbers, expected {count}")
    return found


def _rows(path: str, content: object, name: str) -> Iterator[tuple[str, Record]]:
    """Index of each record of a list, and the record, which has an id of its own."""
    seen: set[int] = set()
    for index, record in enumerate(list_in(path, content, name)):
        try:
            if (id := field(record, "id", int)) in seen:
                raise RecordError("the id occurs twice, expected different ones")
        except RecordError as rule:
            raise refused(path, f"{name}[{index}]", record, rule) from None
        seen.add(id)
        yield f"{name}[{index}]", record
