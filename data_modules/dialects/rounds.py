"""Rounds of question and answer: those before the last under `history`, as Alpaca and query-response have them."""

from __future__ import annotations

from data_modules.containers.reading import RecordError
from data_modules.containers.values import Record, field, kind_of
from data_modules.dialects.conversation import Conversation, Utterance, escaped, unescaped
from data_modules.dialects.fields import has, text_in, written
from data_modules.dialects.from_value import image_list, picture_written


def history_of(record: Record) -> list[Utterance]:
    """The rounds before the last, each a list of two texts; RecordError names the round that breaks a rule."""
    if not has(record, "history"):
        return []
    turns: list[Utterance] = []
    for place, each in enumerate(field(record, "history", list)):
        if not isinstance(each, list) or len(each) != 2:
            found = f"{len(each)} texts" if isinstance(each, list) else kind_of(each)
            raise RecordError(f"round {place} of 'history' is {found}, expected a question and an answer")
        turns += answered(
            {"question": each[0], "answer": each[1]}, "question", "answer", f"round {place} of 'history': "
        )
    return turns


def answered(record: Record, question: str, answer: str, where: str = "") -> list[Utterance]:
    """A round: the texts of a record under two keys."""
    try:
        asked, told = text_in(record, question), text_in(record, answer)
    except RecordError as rule:
        raise RecordError(f"{where}{rule}") from None
    return [Utterance("user", unescaped(asked)), Utterance("assistant", unescaped(told))]


def rounds_written(conversation: Conversation, last: tuple[str, str], more: Record) -> Record:
    """The record of a conversation of rounds; RecordError for one that does not alternate, question first.

    Args:
        last: the keys of the last question and answer.
        more: what else the dialect writes.
    """
    system, rounds = rounds_of(conversation)
    *history, (asked, told) = [[escaped(asked.text), escaped(told.text)] for asked, told in rounds]
    body = {**({"system": system} if system else {}), last[0]: asked, **more, last[1]: told}
    body |= {"history": history} if history else {}
    return written(conversation, body, image_list([picture_written(each) for each in conversation.images]))


def rounds_of(conversation: Conversation) -> tuple[str, list[tuple[Utterance, Utterance]]]:
    """The system text, as it is written, and pairs of question and answer; RecordError where turns are no pairs."""
    first, *others = conversation.turns or (Utterance("user", ""),)
    turns = others if first.role == "system" else [first, *others]
    pairs = list(zip(turns[::2], turns[1::2], strict=False))
    if len(turns) % 2 or not pairs or any((one.role, other.role) != ("user", "assistant") for one, other in pairs):
        raise RecordError(
            f"has turns of {', '.join(turn.role for turn in turns)}, expected questions with their answers"
        )
    return escaped(first.text) if first.role == "system" else "", pairs
