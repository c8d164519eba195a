"""Which samples LLaVA's released code learns nothing of, because it cannot tell their rounds apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from lightning_mllm.contracts import TokenKind, Turn
from lightning_mllm.processing.chat import Chat
from lightning_mllm.processing.chat_template import ChatTemplate, Piece, count_marks


def keeps_labels(
    chat: Chat, turns: Sequence[Turn], kinds_of: Callable[[Sequence[Piece]], Sequence[int]], max_length: int
) -> bool:
    """Whether LLaVA's released code keeps the labels: it finds all rounds, or those it finds fill the row.

    Args:
        chat: How the turns are written.
        turns: Of a sample.
        kinds_of: Pieces -> the kinds of their tokens.
        max_length: Tokens that a row may have.
    """
    if (found := found_rounds(chat, turns)) == list(turns):
        return True
    if not found:
        return False
    kinds = kinds_of(chat.render(found))
    # An image is one token where that code counts, and the end that misled it none.
    slots = sum(kind != TokenKind.TEXT for kind in kinds) - sum(map(count_marks, found))
    return len(kinds) - slots >= max_length


def found_rounds(chat: Chat, turns: Sequence[Turn]) -> list[Turn]:
    """The turns of the rounds that LLaVA's released code finds before one misleads it; all where none does.

    It looks for the template's `round_marks`: one that stands in a turn's text, a question without a text and a last
    answer without one mislead it. An answer with an end in it is found up to there. For templates without such marks,
    a tokenizer's own among them, nothing is searched for.
    """
    if not isinstance(chat, ChatTemplate) or not chat.round_marks:
        return list(turns)
    before, behind = (chat.piece(mark).text for mark in chat.round_marks)
    found = 0
    for i, turn in enumerate(turns):
        text, *rest = turn.text.split(behind)
        if before in text or (turn.role == "user" and (rest or not text)):
            break
        if rest:
            return [*turns[:i], replace(turn, text=text)]
        if turn.role == "assistant" and text:
            found = i + 1
    return list(turns[:found])
