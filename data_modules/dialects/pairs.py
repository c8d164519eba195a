"""Pairs under `conversation`, as ms-swift writes ShareGPT."""

from data_modules.containers.values import Record, field
from data_modules.dialects.conversation import Conversation, Utterance, escaped
from data_modules.dialects.dialect import Dialect
from data_modules.dialects.fields import COMMON, conversation_of, known_keys, object_of, written
from data_modules.dialects.from_value import image_list, picture_written
from data_modules.dialects.rounds import answered, rounds_of


def _fits(record: Record) -> bool:
    pairs = record.get("conversation")
    return isinstance(pairs, list) and bool(pairs) and all(isinstance(each, dict) and "human" in each for each in pairs)


def _read(record: object) -> Conversation:
    record = object_of(record)
    extra = known_keys(record, ("conversation",), "conversation")
    turns: list[Utterance] = []
    for place, pair in enumerate(field(record, "conversation", list)):
        turns += answered(object_of(pair), "human", "assistant", f"pair {place}: ")
    return conversation_of(record, turns, extra)


def _write(conversation: Conversation) -> Record:
    system, rounds = rounds_of(conversation)
    pairs = [{"human": escaped(asked.text), "assistant": escaped(told.text)} for asked, told in rounds]
    body = {**({"system": system} if system else {}), "conversation": pairs}
    return written(conversation, body, image_list([picture_written(each) for each in conversation.images]))


PAIRS = Dialect(
    name="pairs",
    form='{"system", "conversation": [{"human", "assistant"}, ...], "images": [...]}',
    keys=COMMON | {"conversation"},
    fits=_fits,
    read=_read,
    write=_write,
)
