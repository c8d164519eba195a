"""What a dialect is: a way to write conversations as records of JSON."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from data_modules.dialects.conversation import Conversation
from data_modules.sources.records import Record


def _keeps_all(conversation: Conversation) -> list[str]:
    return []


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """Pure functions between records and conversations; `read(write(c)) == c`, but for what `loses(c)` names."""

    name: str
    form: str
    """One record, for people."""
    fits: Callable[[Record], bool]
    """Whether a record looks like one of this dialect; it may still break rules."""
    read: Callable[[object], Conversation]
    """The conversation of a record; RecordError names the rule that it breaks."""
    write: Callable[[Conversation], Record]
    """The record of a conversation; RecordError where the dialect has no place for it."""
    loses: Callable[[Conversation], list[str]] = _keeps_all
    """What of a conversation the dialect cannot say, in words."""
    embeds: bool = False
    """Whether images stand in the record as data URLs."""
