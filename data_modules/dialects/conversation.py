"""A conversation as no dialect in particular writes it.

In a text `<image>` is an image, in the order of `images`; what is words is `LITERAL_MARK`. Where a dialect keeps images
in its texts, such words are written with a backslash in front:

    text of a file      neutral            what the net reads
    <image>             <image>            an image
    \\<image>            LITERAL_MARK       the words <image>
    \\\\<image>           \\<image>           a backslash and an image

Dialects that keep images beside their texts, as parts, have no need of it: there `<image>` in a text is words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from lightning_mllm.contracts import IMAGE_MARK, LITERAL_MARK, Role

Id = str | int | float | None

_MARKS = re.compile(rf"(\\*)({IMAGE_MARK}|{LITERAL_MARK})")


class Picture(NamedTuple):
    """An image of a conversation: the name of a file, or its encoded bytes."""

    name: str | None = None
    """Relative to the folder of images, or of a file beside the record."""
    data: bytes | None = None
    """Encoded, as JPEG or PNG say; where set, `name` is only how it was called."""


class Utterance(NamedTuple):
    """One turn."""

    role: Role
    text: str
    learn: bool = True
    """Whether an assistant's text is learned."""


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """One record."""

    id: Id = None
    """As it is written; None where there is none."""
    images: tuple[Picture, ...] = ()
    turns: tuple[Utterance, ...] = ()
    objects: Mapping[str, Any] | None = None
    """Boxes, as `objects.py` reads them."""
    extra: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """What else the record holds, under its own keys."""
    unread: tuple[str, ...] = ()
    """Keys of turns that are not kept."""


def unescaped(text: str) -> str:
    """A text of a file as neutral: a backslash in front of a mark makes it words, two are one backslash."""

    def neutral(found: re.Match[str]) -> str:
        backslashes = found[1]
        return "\\" * (len(backslashes) // 2) + (LITERAL_MARK if len(backslashes) % 2 else IMAGE_MARK)

    return _MARKS.sub(neutral, text) if IMAGE_MARK in text else text


def escaped(text: str) -> str:
    """The inverse of `unescaped`."""
    return _MARKS.sub(lambda found: 2 * found[1] + "\\" * (found[2] == LITERAL_MARK) + IMAGE_MARK, text)


def words_only(text: str) -> str:
    """A text in which each mark is words, as neutral."""
    return text.replace(IMAGE_MARK, LITERAL_MARK)


def spoken(text: str) -> str:
    """A neutral text without images, as it is read."""
    return text.replace(LITERAL_MARK, IMAGE_MARK)
