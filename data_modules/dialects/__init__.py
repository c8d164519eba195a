"""How conversations are written in files: one file a dialect, and which one a file is in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from data_modules.containers.values import kind_of
from data_modules.dialects.alpaca import ALPACA
from data_modules.dialects.chat import CHAT
from data_modules.dialects.dialect import Dialect
from data_modules.dialects.llava import LLAVA
from data_modules.dialects.openai import OPENAI
from data_modules.dialects.openai_parts import OPENAI_PARTS
from data_modules.dialects.pairs import PAIRS
from data_modules.dialects.query_response import QUERY_RESPONSE
from data_modules.dialects.sharegpt import SHAREGPT
from data_modules.dialects.user_assistant import USER_ASSISTANT

DIALECTS: Mapping[str, Dialect] = {
    each.name: each
    for each in (LLAVA, USER_ASSISTANT, SHAREGPT, OPENAI, OPENAI_PARTS, CHAT, ALPACA, QUERY_RESPONSE, PAIRS)
}
"""By name; of two that a file is in alike, the first reads it as the other would."""

KEYS = {"conversations": "sharegpt", "messages": "openai", "conversation": "pairs"}
"""Keys that alone tell how a record is to be read."""
LOOKED_AT = 64
"""Records by which a file's dialect is told."""


def named(dialect: str) -> Dialect:
    """A dialect by its name; ValueError for a name that is none."""
    if dialect not in DIALECTS:
        raise ValueError(f"dialect: found {dialect!r}, expected one of {', '.join(DIALECTS)}")
    return DIALECTS[dialect]


def detected(records: Iterable[object]) -> Dialect:
    """The dialect that records are in: the first that all of those fit which fit any.

    Raises:
        ValueError: the records fit none, or no one fits them all; it names the keys that were found.
    """
    found, keys, seen = Counter[str](), dict[str, None](), 0
    claimed: list[set[str]] = []
    for record in records:
        seen += 1
        keys.update(dict.fromkeys(record) if isinstance(record, dict) else {kind_of(record): None})
        fitting = {name for name, each in DIALECTS.items() if isinstance(record, dict) and each.fits(record)}
        if fitting:
            claimed.append(fitting)
            found.update({_body(name): name for name in [*DIALECTS][::-1] if name in fitting}.values())
    told = f"looked at {seen} records, with the keys {', '.join(map(repr, list(keys)[:12])) or 'of nothing'}"
    by_key = [name for key, name in KEYS.items() if key in keys]
    if not claimed and len(by_key) == 1:
        return DIALECTS[by_key[0]]  # which says what is wrong with the records
    if not claimed:
        raise ValueError(f"{told}: found no dialect of {', '.join(DIALECTS)}; name one with 'dialect' (--from-dialect)")
    families = [{_body(name) for name in fitting} for fitting in claimed]
    common = set.intersection(*claimed)
    if not common or any(len(family) > 1 for family in families):
        several = ", ".join(f"{name} in {found[name]}" for name in DIALECTS if name in found)
        raise ValueError(
            f"{told}: found {several}, expected one dialect of all; name it with 'dialect' (--from-dialect)"
        )
    return next(each for name, each in DIALECTS.items() if name in common)


def _body(name: str) -> str:
    """What of a record holds the turns of a dialect; two of one body read alike."""
    return {"user_assistant": "llava", "sharegpt": "llava", "openai_parts": "openai", "chat": "openai"}.get(name, name)
