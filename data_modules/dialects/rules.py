"""Rules that every conversation keeps, in whatever dialect; and repairs by name for turns that break one.

    join_same_roles           turns of one role in a row become one, a line end between them
    drop_leading_assistant    an answer before the first question goes
    drop_trailing_user        a question without an answer at the end goes, with its images

They are made in this order, and each is counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from data_modules.containers.reading import RecordError
from data_modules.dialects.conversation import Conversation, Utterance, words_only
from lightning_mllm.contracts import IMAGE_MARK

Repair = Literal["join_same_roles", "drop_leading_assistant", "drop_trailing_user"]
Marks = Literal["given", "front", "words"]

REFUSE = "refuse"
Turns = list[Utterance]


@dataclass(frozen=True)
class Rules:
    """What is done to conversations that break a rule.

    Args:
        repairs: of turns.
        marks: 'given'; 'front' puts missing image marks in front of the first user turn; 'words' takes marks for words
            in answers, and in records without images.
    """

    repairs: tuple[Repair, ...] = ()
    marks: Marks = "given"


def rules_of(turns: str | Sequence[str] = REFUSE, marks: str = "given") -> Rules:
    """Rules by name.

    Args:
        turns: 'refuse', or a repair, or several.
        marks: as in Rules.

    Raises:
        ValueError: a name that is none.
    """
    given = [turns] if isinstance(turns, str) else list(turns)
    named = [each for each in given if each != REFUSE]
    known = get_args(Repair)
    if odd := [each for each in named if each not in known]:
        raise ValueError(f"turns: found {odd[0]!r}, expected {REFUSE} or some of {', '.join(known)}")
    if REFUSE in given and named:
        raise ValueError(f"turns: found {REFUSE} and {named[0]}, expected one or the other")
    if marks not in get_args(Marks):
        raise ValueError(f"marks: found {marks!r}, expected {', '.join(get_args(Marks))}")
    return Rules(tuple(each for each in known if each in named), marks)  # pyright: ignore[reportArgumentType]


def ruled(conversation: Conversation, rules: Rules, changed: list[str]) -> Conversation:
    """The conversation, repaired; RecordError names the rule that it breaks still.

    Args:
        changed: what is read otherwise than it is written is added.
    """
    conversation = _repaired(conversation, rules.repairs, changed)
    _check_order(conversation.turns)
    if rules.marks == "words":
        conversation = _with_words(conversation, changed)
    conversation = _marked(conversation, rules.marks, changed)
    if not any(turn.learn for turn in conversation.turns if turn.role == "assistant"):
        raise RecordError("no turn of assistant is learned, expected one at least")
    return conversation


def _repaired(conversation: Conversation, repairs: Sequence[Repair], changed: list[str]) -> Conversation:
    turns, images = list(conversation.turns), conversation.images
    first = 1 if turns and turns[0].role == "system" else 0
    if "join_same_roles" in repairs and len(joined := _joined(turns)) < len(turns):
        changed.append("turns of one role joined")
        turns = joined
    if "drop_leading_assistant" in repairs and len(turns) > first and turns[first].role == "assistant":
        changed.append("leading assistant dropped")
        while len(turns) > first and turns[first].role == "assistant":
            del turns[first]
    if "drop_trailing_user" in repairs and turns and turns[-1].role == "user":
        changed.append("trailing user dropped")
        whole = _marks(turns) == len(images)
        while turns and turns[-1].role == "user":
            del turns[-1]
        images = images[: _marks(turns)] if whole else images
    return replace(conversation, turns=tuple(turns), images=images)


def _joined(turns: Turns) -> Turns:
    joined: Turns = []
    for place, turn in enumerate(turns):
        last = joined[-1] if joined else None
        if last is None or last.role != turn.role:
            joined.append(turn)
            continue
        if last.learn != turn.learn:
            raise RecordError(f"turns {place - 1} and {place} are to be joined and differ in loss, expected the same")
        joined[-1] = last._replace(text=f"{last.text}\n{turn.text}")
    return joined


def _check_order(turns: Sequence[Utterance]) -> None:
    """A system turn or none, then user and assistant in turn; RecordError otherwise."""
    spoken = turns[1:] if turns and turns[0].role == "system" else turns
    first = len(turns) - len(spoken)
    for place, turn in enumerate(spoken):
        expected = "assistant" if place % 2 else "user"
        if turn.role != expected:
            raise RecordError(f"turn {first + place} is of {turn.role}, expected {expected}")
    if not spoken or len(spoken) % 2:
        raise RecordError(f"found {len(spoken)} turns of user and assistant, expected pairs that end with assistant")


def _marks(turns: Sequence[Utterance]) -> int:
    return sum(turn.text.count(IMAGE_MARK) for turn in turns)


def _with_words(conversation: Conversation, changed: list[str]) -> Conversation:
    """Marks that can be no images as words: those of answers, and all where there are no images."""

    def words(turn: Utterance) -> Utterance:
        shown = turn.role == "user" and conversation.images
        return turn if shown else turn._replace(text=words_only(turn.text))

    turns = tuple(map(words, conversation.turns))
    if turns != conversation.turns:
        changed.append("marks as words")
    return replace(conversation, turns=turns)


def _marked(conversation: Conversation, how: Marks, changed: list[str]) -> Conversation:
    """The conversation with a mark for each image; RecordError for others."""
    turns, images = conversation.turns, len(conversation.images)
    for place, turn in enumerate(turns):
        if turn.role != "user" and IMAGE_MARK in turn.text:
            raise RecordError(
                f"turn {place} of {turn.role} has an {IMAGE_MARK} mark, expected them in turns of user"
                f" (\\{IMAGE_MARK} for the words)"
            )
    marks = _marks(turns)
    if not marks and images and how == "front":
        changed.append("marks put in front")
        first = next(k for k, turn in enumerate(turns) if turn.role == "user")
        text = (IMAGE_MARK + "\n") * images + turns[first].text
        told = (*turns[:first], turns[first]._replace(text=text), *turns[first + 1 :])
        return replace(conversation, turns=told)
    if marks != images:
        hint = f"write {IMAGE_MARK} where an image stands, or set marks: front"
        hint = hint if marks < images else f"\\{IMAGE_MARK} is the words"
        raise RecordError(f"found {marks} {IMAGE_MARK} marks and {images} images, expected as many of each; {hint}")
    return conversation
