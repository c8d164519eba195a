"""What a dialect is: a way to write conversations as records of JSON."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from data_modules.containers.values import Record
from data_modules.dialects.conversation import Conversation


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """Pure functions between records and conversations; `read(write(c))` is `c`, or what the dialect can say of it."""

    name: str
    form: str
    """One record, for people."""
    keys: frozenset[str]
    """Those that it reads."""
    fits: Callable[[Record], bool]
    """Whether a record looks like one of this dialect; it may still break rules."""
    read: Callable[[object], Conversation]
    """The conversation of a record; RecordError names the rule that it breaks."""
    write: Callable[[Conversation], Record]
    """The record of a conversation; RecordError where the dialect has no place for it."""
    embeds: bool = False
    """Whether images stand in the record as data URLs."""
