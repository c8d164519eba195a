"""Queries and responses, as ms-swift has them."""

from data_modules.containers.values import Record
from data_modules.dialects.conversation import Conversation
from data_modules.dialects.dialect import Dialect
from data_modules.dialects.fields import COMMON, conversation_of, known_keys, object_of
from data_modules.dialects.rounds import answered, history_of, rounds_written

KEYS = ("query", "response", "history")


def _read(record: object) -> Conversation:
    record = object_of(record)
    extra = known_keys(record, KEYS, "query")
    turns = [*history_of(record), *answered(record, "query", "response")]
    return conversation_of(record, turns, extra)


def _write(conversation: Conversation) -> Record:
    return rounds_written(conversation, ("query", "response"), {})


QUERY_RESPONSE = Dialect(
    name="query_response",
    form='{"query", "response", "system", "history": [[query, response], ...], "images": [...]}',
    keys=COMMON | {*KEYS},
    fits=lambda record: {"query", "response"} <= record.keys(),
    read=_read,
    write=_write,
)
