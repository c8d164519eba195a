"""Queries and responses, as ms-swift has them."""

from data_modules.dialects.conversation import Conversation
from data_modules.dialects.dialect import Dialect
from data_modules.dialects.fields import conversation_of, known_keys, object_of
from data_modules.dialects.rounds import answered, history_of, loses_loss, rounds_written
from data_modules.sources.records import Record


def _read(record: object) -> Conversation:
    record = object_of(record)
    extra = known_keys(record, ("query", "response", "history"), "query")
    turns = [*history_of(record), *answered(record, "query", "response")]
    return conversation_of(record, turns, extra)


def _write(conversation: Conversation) -> Record:
    return rounds_written(conversation, ("query", "response"), {})


QUERY_RESPONSE = Dialect(
    name="query_response",
    form='{"query", "response", "system", "history": [[query, response], ...], "images": [...]}',
    fits=lambda record: {"query", "response"} <= record.keys(),
    read=_read,
    write=_write,
    loses=loses_loss,
)
