"""Boxes that a record tells beside its texts, in the layout of ms-swift, and the marks that stand for them.

    text       "Where is <ref-object>?"  "At <bbox>."
    objects    {"ref": ["the dog"], "bbox": [[x0, y0, x1, y1]], "bbox_type": "real", "width": 640, "height": 480}

`bbox_type` says what the numbers are: 'real' pixels (the default), or 'norm1' and 'norm1000' shares; `frame` what
shares are of: the 'image' (the default) or the 'square' that it is padded to. `image_id` says which image a box is in,
0 by default; `width` and `height` are a number, or a list with one for each image.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from data_modules.containers.reading import RecordError
from data_modules.containers.values import field, one_of
from data_modules.dialects.conversation import Conversation
from lightning_mllm.boxes import FRAMES, Box, Frame, of_pixels, write

REF_MARK, BOX_MARK = "<ref-object>", "<bbox>"
UNITS = {"real": 0.0, "norm1": 1.0, "norm1000": 1000.0}
"""What the numbers of a box are shares of; 0 for pixels."""

_MARKS = re.compile(f"{REF_MARK}|{BOX_MARK}")


def told(conversation: Conversation, dialect: str, frame: Frame | None) -> Conversation:
    """The conversation with its boxes and names in the place of their marks.

    Args:
        dialect: how boxes are spelled (`boxes.DIALECTS`); empty where none may be told.
        frame: what coordinates are shares of.

    Raises:
        RecordError: boxes that are none, or that cannot be told in this frame, or as many marks as there are others.
    """
    if conversation.objects is None:
        return conversation
    objects = {key: value for key, value in conversation.objects.items() if value is not None}
    names = field({"ref": [], **objects}, "ref", list)
    given = field({"bbox": [], **objects}, "bbox", list)
    found = {mark: sum(turn.text.count(mark) for turn in conversation.turns) for mark in (REF_MARK, BOX_MARK)}
    if not any(found.values()):
        return conversation
    for mark, each, key in ((REF_MARK, names, "ref"), (BOX_MARK, given, "bbox")):
        if found[mark] and found[mark] != len(each):
            raise RecordError(f"found {found[mark]} {mark} marks and {len(each)} of 'objects.{key}', expected as many")
    if odd := [each for each in names if not isinstance(each, str)]:
        raise RecordError(f"'objects.ref' holds {odd[0]!r}, expected names")
    texts = iter(())
    if found[BOX_MARK]:
        if not dialect or frame is None:
            raise RecordError("has boxes, expected the settings 'boxes' and 'frame': how and of what they are told")
        texts = iter([write([_box(objects, place, frame)], dialect) for place in range(len(given))])
    left = {REF_MARK: iter(names), BOX_MARK: texts}
    turns = [
        turn._replace(text=_MARKS.sub(lambda mark: next(left[mark[0]], mark[0]), turn.text))
        for turn in conversation.turns
    ]
    return replace(conversation, turns=tuple(turns))


def _box(objects: Mapping[str, Any], place: int, frame: Frame) -> Box:
    """Box `place` as shares of the frame."""
    where = f"'objects.bbox' {place}"
    numbers = objects["bbox"][place]
    if not isinstance(numbers, list) or len(numbers) != 4 or not all(type(each) in (int, float) for each in numbers):
        raise RecordError(f"{where} is {str(numbers)[:60]}, expected four numbers")
    x0, y0, x1, y1 = map(float, numbers)
    unit = UNITS[one_of({"bbox_type": "real", **objects}, "bbox_type", tuple(UNITS))]
    given: Any = one_of({"frame": "image", **objects}, "frame", FRAMES)
    if not all(map(math.isfinite, (x0, y0, x1, y1))) or x1 <= x0 or y1 <= y0:
        raise RecordError(f"{where} is {numbers}, expected x0 < x1 and y0 < y1")
    if unit and not all(0 <= each <= unit for each in (x0, y0, x1, y1)):
        raise RecordError(f"{where} is {numbers}, expected numbers of 0 to {unit:g}")
    if unit and given == frame:
        return Box(x0 / unit, y0 / unit, x1 / unit, y1 / unit)
    width, height = _size(objects, place, where)
    if unit:
        # Shares of one frame to pixels of the image, of which shares of the other are told.
        side = max(width, height)
        wide, high = (side, side) if given == "square" else (width, height)
        left, top = (side - width) / 2 * (given == "square"), (side - height) / 2 * (given == "square")
        x0, x1 = (each / unit * wide - left for each in (x0, x1))
        y0, y1 = (each / unit * high - top for each in (y0, y1))
    try:
        return of_pixels(x0, y0, x1 - x0, y1 - y0, width, height, frame)
    except ValueError as error:
        raise RecordError(f"{where}: {error}") from None


def _size(objects: Mapping[str, Any], place: int, where: str) -> tuple[int, int]:
    """Width and height of the image that box `place` is in, in pixels."""
    ids = objects.get("image_id", [])
    image = ids[place] if isinstance(ids, list) and place < len(ids) else 0
    size: list[int] = []
    for key in ("width", "height"):
        value = objects.get(key)
        if isinstance(value, list):
            value = value[image] if type(image) is int and 0 <= image < len(value) else None
        if type(value) is not int or value < 1:
            raise RecordError(f"{where} needs the size of its image, expected 'objects.{key}' in pixels")
        size.append(value)
    return size[0], size[1]
