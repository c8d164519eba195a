"""What the dialects have in common: pictures, ids, what is learned of a turn, keys that nobody reads.

A key whose value is null is absent: parquet fills rows with nulls.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from data_modules.containers.reading import RecordError
from data_modules.containers.values import MAX_TEXT, Record, field, kind_of
from data_modules.dialects.conversation import Conversation, Id, Picture, Utterance

IMAGE_KEYS = ("image", "images")
COMMON = frozenset({"id", *IMAGE_KEYS, "objects", "system"})
"""Keys that every dialect reads."""
TOLD_APART = frozenset(
    {"conversations", "messages", "instruction", "input", "output", "query", "response", "history", *COMMON} - {"id"}
)
"""Keys that must not be misspelled: what they hold would not be seen."""

_DATA_URL = re.compile(r"data:[\w.+/-]*((?:;[\w.=+-]+)*?)(;base64)?,", re.ASCII)
_ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")


_STARTS = {b"\x89PNG": "png", b"GIF8": "gif", b"BM": "bmp", b"II*\0": "tiff", b"MM\0*": "tiff"}


def has(record: Record, key: str) -> bool:
    """Whether a key is there and not null."""
    return record.get(key) is not None


def id_of(record: Record) -> Id:
    """The id of a record; RecordError for one that is neither a text nor a number."""
    id = record.get("id")
    if id is None or type(id) in (str, int, float):
        return id
    raise RecordError(f"'id' is {kind_of(id)}, expected a text or a number")


def text_in(record: object, key: str, *, empty: bool = False) -> str:
    """`record[key]`, a text as it is written; RecordError where it is none, too long, or blank and not `empty`."""
    text = field(record, key, str)
    if not (empty or text.strip()):
        raise RecordError(f"'{key}' is empty, expected a text")
    if len(text) > MAX_TEXT:
        raise RecordError(f"'{key}' has {len(text)} characters, expected at most {MAX_TEXT}")
    return text


def pictures_of(record: Record) -> tuple[Picture, ...]:
    """The images of a record, under `image` or `images`: one, or a list of them; RecordError for anything else."""
    found = [key for key in IMAGE_KEYS if has(record, key) and record[key] != []]
    if len(found) > 1:
        raise RecordError("has both 'image' and 'images', expected one of them")
    if not found:
        return ()
    value = record[found[0]]
    listed = value if isinstance(value, list) else [value]
    return tuple(picture_of(each, f"'{found[0]}'", listed=listed is value) for each in listed)


def picture_of(value: object, key: str, *, listed: bool = False) -> Picture:
    """A picture as a record holds it: a name, a data URL, a file URL, bytes, or the {"bytes", "path"} of `datasets`."""
    if isinstance(value, str):
        return named_picture(value, key)
    if isinstance(value, bytes):
        return Picture(data=value)
    if isinstance(value, dict):
        data, path = value.get("bytes"), value.get("path")
        if isinstance(data, bytes) and data:
            return Picture(path if isinstance(path, str) else None, data)
        if data is None and isinstance(path, str):
            return named_picture(path, key)
        raise RecordError(f"{key} is an object with {_keys(value)}, expected 'bytes' or 'path'")
    if listed:
        raise RecordError(f"{key} holds {kind_of(value)}, expected names of files")
    raise RecordError(f"{key} is {kind_of(value)}, expected a text or a list")


def named_picture(text: str, key: str) -> Picture:
    """A picture by the name of a file, a file URL or a data URL; RecordError for other addresses."""
    if text.startswith("data:"):
        return Picture(data=_decoded(text, key))
    if text.startswith("file:"):
        return Picture(name="file:" + _path_of(text, key))
    if (found := _ADDRESS.match(text)) is not None:
        raise RecordError(f"{key} is an address ({found[0]}...), expected the name of a file, a file URL or a data URL")
    if not text:
        raise RecordError(f"{key} is empty, expected the name of a file")
    return Picture(name=text)


def _path_of(url: str, key: str) -> str:
    """The path of a file URL."""
    from urllib.parse import unquote, urlsplit

    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise RecordError(f"{key} is {url[:60]!r}, expected file:///PATH")
    return unquote(parts.path)


def _decoded(url: str, key: str) -> bytes:
    """The bytes of a data URL."""
    head = _DATA_URL.match(url)
    if head is None or not head[2]:
        raise RecordError(f"{key} is {url[:40]!r}, expected data:image/...;base64,...")
    try:
        data = base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise RecordError(f"{key} is a data URL that is not base64 ({error})") from None
    if not data:
        raise RecordError(f"{key} is a data URL without data, expected an image")
    return data


def data_url(data: bytes) -> str:
    """The bytes of an image as a data URL."""
    return f"data:image/{suffix_of(data)};base64,{base64.b64encode(data).decode()}"


def suffix_of(data: bytes) -> str:
    """The usual ending of an encoded image, from its first bytes."""
    for start, suffix in _STARTS.items():
        if data.startswith(start):
            return suffix
    return "webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else "jpeg"


def learn_of(turn: Mapping[str, Any], assistant: bool) -> bool:
    """Whether a turn is learned: `loss` (true or false), or OpenAI's `weight` (0 or 1); RecordError for others."""
    found = [key for key in ("loss", "weight") if turn.get(key) is not None]
    if not found:
        return True
    values: list[bool] = []
    for key in found:
        value = turn[key]
        if (key == "loss" and type(value) is not bool) or value not in (0, 1):
            expected = "true or false" if key == "loss" else "0 or 1"
            told = value if isinstance(value, int | float) else kind_of(value)
            raise RecordError(f"'{key}' is {told}, expected {expected}")
        values.append(bool(value))
    if len(set(values)) > 1:
        raise RecordError("'loss' and 'weight' disagree, expected one of them")
    if values[0] and not assistant:
        raise RecordError(f"'{found[0]}' is {turn[found[0]]} in a turn that is not the assistant's, expected it there")
    return values[0]


def known_keys(record: Record, own: Collection[str], expected: str) -> dict[str, Any]:
    """What a record holds under keys that a dialect does not read.

    Args:
        own: the keys that the dialect reads beside `COMMON`.
        expected: the key that a record must have.

    Raises:
        RecordError: the expected key is missing, or a key is another one misspelled.
    """
    extra = {key: value for key, value in record.items() if key not in COMMON and key not in own and value is not None}
    if expected not in record:
        raise RecordError(f"has no '{expected}'{_meant(extra, [expected])}, found {_keys(record)}")
    if has(record, "tools") and record["tools"] not in ("", "[]", []):
        raise RecordError("has 'tools', expected a conversation without tools")
    for key in extra:
        near = [meant for meant in sorted(TOLD_APART & {*COMMON, *own}) if not has(record, meant) and _near(key, meant)]
        if near:
            raise RecordError(f"has the key '{key}', expected '{min(near, key=lambda each: each != key.lower())}'")
    return extra


def _meant(keys: Collection[str], expected: Sequence[str]) -> str:
    near = [key for key in keys for each in expected if _near(key, each)]
    return f" but '{near[0]}'" if near else ""


def _near(key: str, meant: str) -> bool:
    """Whether a key is another one in other letters: case, one letter too many or too few, two changed places."""
    one, other = key.lower().replace("-", "_"), meant.lower()
    if one == other or (len(one) == len(other) and sorted(one) == sorted(other)):
        return True
    return abs(len(one) - len(other)) == 1 and difflib.SequenceMatcher(None, one, other).ratio() >= 0.9


def _keys(record: Mapping[str, Any]) -> str:
    names = [f"'{key}'" for key in list(record)[:8]]
    return "the keys " + ", ".join(names) if names else "no keys"


def object_of(record: object) -> Record:
    """The record, if it is an object; RecordError otherwise."""
    if not isinstance(record, dict):
        raise RecordError(f"found {kind_of(record)}, expected an object")
    return record


def conversation_of(
    record: Record,
    turns: Sequence[Utterance],
    extra: Mapping[str, Any],
    *,
    images: tuple[Picture, ...] | None = None,
    unread: tuple[str, ...] = (),
) -> Conversation:
    """The conversation of a record: what all dialects keep under the same keys, around its turns.

    Args:
        images: those of a dialect that keeps them in its turns; None where they are under `IMAGE_KEYS`.
        unread: as in Conversation.
    """
    told = list(turns)
    if has(record, "system") and (text := text_in(record, "system", empty=True)).strip():
        if told and told[0].role == "system":
            raise RecordError("has 'system' and a system turn, expected one of them")
        told.insert(0, Utterance("system", text))
    objects = field(record, "objects", dict) if has(record, "objects") else None
    return Conversation(
        images=pictures_of(record) if images is None else images,
        id=id_of(record),
        turns=tuple(told),
        objects=objects or None,
        extra=dict(extra),
        unread=unread,
    )


def written(conversation: Conversation, body: Record, images: Record) -> Record:
    """A record: id, images and turns as a dialect writes them, then what all keep under the same keys."""
    id: Record = {} if conversation.id is None else {"id": conversation.id}
    objects: Record = {"objects": dict(conversation.objects)} if conversation.objects else {}
    return {**conversation.extra, **id, **images, **body, **objects}
