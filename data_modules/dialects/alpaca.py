"""Alpaca: `input` stands under the instruction; `history`, `system` and `images` as LLaMA-Factory has them."""

from data_modules.containers.values import Record
from data_modules.dialects.conversation import Conversation
from data_modules.dialects.dialect import Dialect
from data_modules.dialects.fields import COMMON, conversation_of, has, known_keys, object_of, text_in
from data_modules.dialects.rounds import answered, history_of, rounds_written

KEYS = ("instruction", "input", "output", "history")


def _read(record: object) -> Conversation:
    record = object_of(record)
    extra = known_keys(record, KEYS, "instruction")
    history = history_of(record)
    shown = text_in(record, "input", empty=True) if has(record, "input") else ""
    asked = text_in(record, "instruction", empty=bool(shown.strip()))
    question = "\n".join(each for each in (asked, shown) if each)
    turns = [*history, *answered({**record, "instruction": question}, "instruction", "output")]
    return conversation_of(record, turns, extra)


def _write(conversation: Conversation) -> Record:
    return rounds_written(conversation, ("instruction", "output"), {"input": ""})


ALPACA = Dialect(
    name="alpaca",
    form='{"instruction", "input", "output", "system", "history": [[question, answer], ...], "images": [...]}',
    keys=COMMON | {*KEYS},
    fits=lambda record: {"instruction", "output"} <= record.keys(),
    read=_read,
    write=_write,
)
