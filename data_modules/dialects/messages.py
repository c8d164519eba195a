"""Turns as {"role", "content"}: OpenAI's messages and those of chat templates, contents being texts or lists of parts.

Where a record has a part that is an image, `<image>` in its texts is words, and everywhere else an image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from data_modules.containers.reading import RecordError
from data_modules.containers.values import Record, field
from data_modules.dialects.conversation import Conversation, Picture, Utterance, escaped, unescaped, words_only
from data_modules.dialects.dialect import Dialect
from data_modules.dialects.fields import (
    COMMON,
    conversation_of,
    data_url,
    has,
    known_keys,
    learn_of,
    object_of,
    pictures_of,
    text_in,
    written,
)
from data_modules.dialects.from_value import image_list, picture_written
from data_modules.dialects.parts import is_image, parts_of, read_parts
from lightning_mllm.contracts import IMAGE_MARK, Role

ROLES: dict[str, Role] = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
KEYS = COMMON | {"messages"}
TURN_KEYS = frozenset({"role", "content", "loss", "weight"})

Part = Callable[[Picture], Record]
"""An image as a part."""


def read(record: object) -> Conversation:
    """The conversation of any record with `messages`; RecordError names the rule that it breaks."""
    record = object_of(record)
    extra = known_keys(record, ("messages",), "messages")
    messages = field(record, "messages", list)
    in_parts = has_image_parts(record)
    beside = pictures_of(record)
    left = iter(beside)
    turns, shown, unread = list[Utterance](), list[Picture](), dict[str, None]()
    for place, message in enumerate(messages):
        name = field(message, "role", str)
        if name not in ROLES:
            raise RecordError(f"turn {place} is of '{name[:40]}', expected {', '.join(ROLES)}")
        try:
            text, pictures = _content(message, in_parts, left)
            if pictures and ROLES[name] != "user":
                raise RecordError("has an image, expected images in turns of user")
            learn = learn_of(message, ROLES[name] == "assistant")
        except RecordError as rule:
            raise RecordError(f"turn {place} of {name}: {rule}") from None
        shown += pictures
        turns.append(Utterance(ROLES[name], text, learn))
        unread.update(dict.fromkeys(key for key in message if key not in TURN_KEYS and has(message, key)))
    rest = list(left) if in_parts else []
    # Of a tar the images are listed that parts name.
    if rest and (len(rest) < len(beside) or not {*rest} <= {*shown}):
        raise RecordError(f"found {len(rest)} 'images' more than parts of type image, expected as many")
    images = tuple(shown) if in_parts else beside
    return conversation_of(record, turns, extra, images=images, unread=tuple(unread))


def _content(message: Record, in_parts: bool, beside: Iterator[Picture]) -> tuple[str, list[Picture]]:
    """Neutral text and pictures of a message."""
    content = message.get("content")
    if not isinstance(content, list):
        text = text_in(message, "content")
        return (words_only(text) if in_parts else unescaped(text)), []
    text, pictures = read_parts(content, beside, in_parts)
    if not text.strip():
        raise RecordError("'content' is empty, expected a text")
    return text, pictures


def has_image_parts(record: Record) -> bool:
    """Whether a part of a record's messages is an image."""
    return any(map(is_image, _parts_in(record.get("messages"))))


def _parts_in(messages: object) -> list[Any]:
    """All parts of messages whose contents are lists."""
    said = [each.get("content") for each in messages if isinstance(each, dict)] if isinstance(messages, list) else []
    return [part for content in said if isinstance(content, list) for part in content]


def fits(record: Record, *, parts: Callable[[list[Any]], bool]) -> bool:
    """Whether a record has messages of known roles, and contents whose parts (none where all are texts) are such."""
    messages = record.get("messages")
    if not isinstance(messages, list) or not messages:
        return False
    said = all(isinstance(each, dict) and "content" in each and str(each.get("role")) in ROLES for each in messages)
    return said and parts(_parts_in(messages))


def with_parts(name: str, form: str, part: Part, image_type: str, *, embeds: bool) -> Dialect:
    """A dialect whose contents are lists of parts.

    Args:
        name, form, embeds: as in `Dialect`.
        part: what is written for an image.
        image_type: the type that such parts have.
    """

    def known(parts: list[Any]) -> bool:
        types = {str(each.get("type")) if isinstance(each, dict) else "" for each in parts}
        return bool(types) and types <= {"text", image_type}

    writer = partial(_write_parts, part=part, beside=not embeds)
    return Dialect(
        name=name, form=form, keys=KEYS, fits=partial(fits, parts=known), read=read, write=writer, embeds=embeds
    )


def _write_parts(conversation: Conversation, part: Part, beside: bool) -> Record:
    left = iter(conversation.images)
    messages: list[Record] = []
    for role, text, learn in conversation.turns:
        if not conversation.images:
            content: list[Record] = [{"type": "text", "text": escaped(text)}]
        else:
            marked = text if role == "user" else words_only(text)
            content = [
                {"type": "text", "text": each} if each is not None else part(next(left)) for each in parts_of(marked)
            ]
        messages.append({"role": role, "content": content, **weight(learn)})
    images = image_list([picture_written(picture) for picture in conversation.images]) if beside else {}
    return written(conversation, {"messages": messages}, images)


def weight(learn: bool) -> Record:
    """What is written of a turn that is not learned, in OpenAI's words."""
    return {} if learn else {"weight": 0}


def linked(picture: Picture) -> Record:
    """An image as OpenAI's part: a data URL where its bytes are known, its name otherwise."""
    url = picture.name if picture.data is None else data_url(picture.data)
    return {"type": "image_url", "image_url": {"url": url}}


def marks_in(conversation: Conversation) -> int:
    """Marks in the turns of user."""
    return sum(turn.text.count(IMAGE_MARK) for turn in conversation.turns if turn.role == "user")
