"""Rendered text as pieces, and what a conversation is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lightning_mllm.contracts import Turn
from lightning_mllm.processing.marks import split_marks


class Piece(NamedTuple):
    """A run of text that is wholly learned or wholly not, or a mark (`marks.MARKS`)."""

    text: str
    learn: bool
    mark: bool = False
    special: bool = False
    """Whether the template wrote it: special tokens written in it are special tokens. In other pieces they are text."""


def split_system(turns: Sequence[Turn], generate: bool = False) -> tuple[str | None, tuple[Turn, ...]]:
    """The system text, if a first turn brings one, and the turns after it.

    Raises:
        ValueError: an unknown role, a system turn elsewhere, two turns of one role in a row, a conversation opened by
            the assistant (unless it is a lone text), or an answer where one is asked for.
    """
    for i, turn in enumerate(turns):
        if turn.role not in ("system", "user", "assistant"):
            raise ValueError(f"turn {i + 1}: found role {turn.role!r}, expected system, user or assistant")
        if turn.role == "system" and i:
            raise ValueError(f"turn {i + 1}: found a system turn, expected it first or not at all")
        if i and turn.role == turns[i - 1].role:
            raise ValueError(f"turn {i + 1}: found a second {turn.role} turn in a row, expected turns to alternate")
    system = turns[0].text if turns and turns[0].role == "system" else None
    rest = tuple(turns[system is not None :])
    if len(rest) > 1 and rest[0].role == "assistant":
        raise ValueError("found an assistant turn first, expected a user turn")
    if generate and rest and rest[-1].role == "assistant":
        raise ValueError("found an answer at the end, expected the question to be answered")
    return system, rest


def mark_pieces(text: str) -> Iterator[Piece]:
    """Masked text, cut at its marks."""
    return (Piece(part, False, mark=mark) for part, mark in split_marks(text))


def join_pieces(pieces: Sequence[Piece] | Iterator[Piece]) -> list[Piece]:
    """The same text with empty pieces gone and neighbours of one kind joined."""
    joined: list[Piece] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        if not piece.text:
            continue
        if last and not piece.mark and not last.mark and piece[1:] == last[1:]:
            joined[-1] = last._replace(text=last.text + piece.text)
        else:
            joined.append(piece)
    return joined


def check_characters(text: str) -> None:
    """ValueError for half of a surrogate pair (half an emoji), which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"found half of a character ({text[error.start]!a}), expected whole ones") from None
