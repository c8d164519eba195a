"""Turns as {"from", "value"}: what LLaVA and ShareGPT have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from data_modules.containers.reading import RecordError
from data_modules.containers.values import Record, field
from data_modules.dialects.conversation import Conversation, Utterance, escaped, unescaped
from data_modules.dialects.dialect import Dialect
from data_modules.dialects.fields import (
    COMMON,
    conversation_of,
    has,
    known_keys,
    learn_of,
    object_of,
    text_in,
    written,
)
from lightning_mllm.contracts import Role

Roles = Mapping[str, Role]
Images = Callable[[list[object]], Record]
"""The keys under which a dialect writes images."""
TURN_KEYS = frozenset({"from", "value", "loss", "weight"})


def from_value(name: str, form: str, roles: Roles, names: Mapping[Role, str], images: Images) -> Dialect:
    """A dialect of such turns.

    Args:
        name, form: as in `Dialect`.
        roles: what `from` may say, and who that is.
        names: what is written for a role.
        images: the keys under which images are written.
    """
    return Dialect(
        name=name,
        form=form,
        keys=COMMON | {"conversations"},
        fits=partial(_fits, roles=roles),
        read=partial(_read, roles=roles),
        write=partial(_write, names=names, images=images),
    )


def one_or_list(images: list[object]) -> Record:
    """`image`: one, a list of several, or absent."""
    return {"image": images[0] if len(images) == 1 else images} if images else {}


def image_list(images: list[object]) -> Record:
    """`images`: a list, or absent."""
    return {"images": images} if images else {}


def _fits(record: Record, roles: Roles) -> bool:
    turns = record.get("conversations")
    if not isinstance(turns, list) or not turns:
        return False
    return all(isinstance(turn, dict) and "value" in turn and str(turn.get("from")) in roles for turn in turns)


def _read(record: object, roles: Roles) -> Conversation:
    record = object_of(record)
    extra = known_keys(record, ("conversations",), "conversations")
    turns: list[Utterance] = []
    unread: dict[str, None] = {}
    for place, turn in enumerate(field(record, "conversations", list)):
        name = field(turn, "from", str)
        if name not in roles:
            *some, last = list(roles)
            raise RecordError(f"turn {place} is from '{name[:40]}', expected {', '.join(some)} or {last}")
        role = roles[name]
        try:
            text = unescaped(text_in(turn, "value"))
            turns.append(Utterance(role, text, learn_of(turn, role == "assistant")))
        except RecordError as rule:
            raise RecordError(f"turn {place} from {name}: {rule}") from None
        unread.update(dict.fromkeys(key for key in turn if key not in TURN_KEYS and has(turn, key)))
    return conversation_of(record, turns, extra, unread=tuple(unread))


def _write(conversation: Conversation, names: Mapping[Role, str], images: Images) -> Record:
    turns = [
        {"from": names[role], "value": escaped(text), **({} if learn else {"loss": False})}
        for role, text, learn in conversation.turns
    ]
    pictures = [picture_written(picture) for picture in conversation.images]
    return written(conversation, {"conversations": turns}, images(pictures))


def picture_written(picture: object) -> object:
    """A picture as `image` and `images` hold it: its name, or the {"bytes", "path"} of `datasets`."""
    name, data = picture  # pyright: ignore
    return name if data is None else {"bytes": data, "path": name}
