"""Values in records: what they must be, and the rule that is broken where they are not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, cast

from data_modules.containers.reading import RecordError

Record = dict[str, Any]
"""A JSON object."""
Value = TypeVar("Value")

MAX_TEXT = 1_000_000
"""Characters of one turn or document."""


def kind_of(value: object) -> str:
    """What a JSON value is, as error messages say it."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def field(record: object, key: str, *types: type[Value]) -> Value:
    """`record[key]`, which must be one of `types`; RecordError otherwise."""
    if not isinstance(record, dict):
        raise RecordError(f"found {kind_of(record)}, expected an object with '{key}'")
    value = record.get(key)
    if type(value) in types:
        return cast(Value, value)
    found = f"'{key}' is {kind_of(value)}" if key in record else f"has no '{key}'"
    raise RecordError(f"{found}, expected {' or '.join(dict.fromkeys(kind_of(each()) for each in types))}")


def text_of(record: object, key: str, most: int) -> str:
    """`record[key]` without the blanks around it: a text of 1 to `most` characters; RecordError otherwise."""
    text = field(record, key, str).strip()
    if not text:
        raise RecordError(f"'{key}' is empty, expected a text")
    if len(text) > most:
        raise RecordError(f"'{key}' has {len(text)} characters, expected at most {most}")
    return text


def texts_of(record: object, key: str, most: int) -> list[str]:
    """`record[key]`, a list of one text or more, without the blanks around them; RecordError otherwise."""
    found = field(record, key, list)
    if not found:
        raise RecordError(f"'{key}' is empty, expected at least one text")
    return [text_of({key: each}, key, most) for each in found]


def one_of(record: object, key: str, known: Sequence[str]) -> str:
    """`record[key]`, which must be one of `known`; RecordError otherwise."""
    found = field(record, key, str)
    if found not in known:
        raise RecordError(f"'{key}' is '{found}', expected {' or '.join(known)}")
    return found
