"""The content of a message as a list of parts, and as one text.

    parts    image, "What is it?"           text    <image>\\nWhat is it?
             "What is ", image, " this?"            What is <image> this?
             "a", "", image                         a<image>

Parts are joined by a line end, unless one has a blank on that side, or is an empty text. So `parts_of` can write every
text such that `text_of_parts` reads the same; in parts, `<image>` is words.
"""

from __future__ import annotations

from collections.abc import Iterator

from data_modules.containers.reading import RecordError
from data_modules.containers.values import Record, field, one_of
from data_modules.dialects.conversation import Picture, spoken, unescaped, words_only
from data_modules.dialects.fields import named_picture, picture_of, text_in
from lightning_mllm.contracts import IMAGE_MARK

TEXT_TYPES = ("text", "input_text", "output_text")
IMAGE_TYPES = ("image", "image_url", "input_image")


def is_image(part: object) -> bool:
    """Whether a part is an image."""
    return isinstance(part, dict) and part.get("type") in IMAGE_TYPES


def read_parts(parts: list[object], beside: Iterator[Picture], in_parts: bool) -> tuple[str, list[Picture]]:
    """Neutral text and pictures of a list of parts; RecordError names the part that breaks a rule.

    Args:
        beside: the pictures of the record, for parts that only say that an image stands there.
        in_parts: whether the record's images are parts, so that `<image>` in a text is words.
    """
    told, pictures = list[str](), list[Picture]()
    for place, part in enumerate(parts):
        try:
            kind = one_of(part, "type", (*TEXT_TYPES, *IMAGE_TYPES))
            assert isinstance(part, dict)
            if kind in TEXT_TYPES:
                text = text_in(part, "text", empty=True)
                told.append(words_only(text) if in_parts else unescaped(text))
                continue
            picture = _held(part) or next(beside, None)
            if picture is None:
                raise RecordError("an image without a name or data, of which the record has none left in 'images'")
            told.append(IMAGE_MARK)
            pictures.append(picture)
        except RecordError as rule:
            raise RecordError(f"part {place}: {rule}") from None
    return text_of_parts(told), pictures


def _held(part: Record) -> Picture | None:
    """The picture in a part; None where it stands beside."""
    if part.get("image_url") is not None:
        url = part["image_url"]
        return named_picture(
            field(url, "url", str) if isinstance(url, dict) else field(part, "image_url", str), "'url'"
        )
    if part.get("source") is not None:
        source = field(part, "source", dict)
        if source.get("type") == "base64":
            return named_picture(f"data:;base64,{field(source, 'data', str)}", "'source'")
        return named_picture(field(source, "url", str), "'source'")
    for key in ("image", "url", "path"):
        if part.get(key) is not None:
            return picture_of(part[key], f"'{key}'")
    if part.get("base64") is not None:
        return named_picture(f"data:;base64,{field(part, 'base64', str)}", "'base64'")
    if part["type"] != "image":
        raise RecordError("has no 'image_url', expected an object with 'url'")
    return None


def text_of_parts(told: list[str]) -> str:
    """The neutral text of parts, each a neutral text or a mark."""
    text = ""
    for place, part in enumerate(told):
        before = told[place - 1] if place else ""
        if place and before and part and not (before[-1].isspace() or part[0].isspace()):
            text += "\n"
        text += part
    return text


def parts_of(text: str) -> list[str | None]:
    """A neutral text as parts, of which `text_of_parts` makes the same text: texts, and None for an image."""
    first, *others = text.split(IMAGE_MARK)
    if not others:
        return [spoken(text)]
    parts = _between(first, opens=True, closes=False) if first else []
    for place, part in enumerate(others, 1):
        closes = place == len(others)
        parts += [None, *(_between(part, opens=False, closes=closes) if part or not closes else [])]
    return parts


def _between(part: str, *, opens: bool, closes: bool) -> list[str | None]:
    """The text parts between two images, before the first or behind the last."""
    if part in ("", "\n") and not (opens or closes):
        return [] if part else [""]
    glued: list[bool] = []
    for end, at_image in ((0, not opens), (-1, not closes)):
        glued.append(at_image and not part[end].isspace())
        if at_image and len(part) > 1 and part[end] == "\n" and not part[1 if end == 0 else -2].isspace():
            part = part[1:] if end == 0 else part[:-1]
    return [*[""] * glued[0], spoken(part), *[""] * glued[1]]
