"""Turns to text, and which of it is learned.

A template is data (`templates/*.yaml`); one renderer writes text and label mask in the same pass, as pieces, so that
the mask cannot drift from the text. A template ends the masked part where the answer's first token begins: the space
before an answer is part of what is learned, as in Llama's and GPT's tokens, and the generation prompt ends without it.

The template's own text and that of the turns stand in different pieces: `</s>` that a template writes is a special
token, and `</s>` in a turn is text (`Piece.special`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Literal, get_args

from lightning_mllm.contracts import IMAGE_MARK, LITERAL_MARK, Turn
from lightning_mllm.processing.marks import MARKS
from lightning_mllm.processing.stopping import stop_of
from lightning_mllm.processing.text_tokenizer import Piece

Images = Literal["front", "before", "first", "stay", "only"]


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """How turns are written.

    In the wraps `{text}` stands for the turn's text, and `{bos}`, `{eos}` for the tokenizer's own tokens.

    Raises:
        ValueError: a wrap without exactly one `{text}`, or an unknown rule for images.
    """

    name: str
    system: str
    """The system text of a conversation that brings none; empty for none."""
    system_wrap: str = "{text}"
    system_inside: bool = False
    """Whether the wrapped system text opens the first user turn instead of standing before it."""
    between: str = ""
    """What stands before every user turn but the first."""
    user: str
    assistant_prompt: str = ""
    """What opens an answer and is not learned: the generation prompt."""
    assistant: str
    """The learned part of an answer, its end included."""
    end: str = ""
    """What stands behind the last answer, where earlier ones have no such end."""
    learn_end: bool = True
    """Whether `end` is learned with that answer."""
    generation_prompt: str = ""
    """The beginning of an answer that is learned, and yet given where one is asked for."""
    images: Images
    """front: `<image>` moves to the front of its turn, a line end after it (LLaVA); before: in front of all that the
    turn's wrap writes (BLIP-2); first: of all turns, in front of the whole text (SPHINX); only: nothing else is kept of
    the turn, the only one; stay: as written."""
    bos: str = "<s>"
    eos: str = "</s>"
    writes_bos: bool = False
    """Whether the rendered text brings the tokens that a tokenizer would put before it."""
    wordless: ChatTemplate | None = None
    """How a user's images without a word are written, where that is another way; in a file, another template's name."""
    tasks: dict[str, ChatTemplate] = field(default_factory=dict)
    """Task of a sample -> how it is written, where that is another way; in a file, other templates' names."""
    empty_user: str | None = None
    """What a user turn without a text is written as; None for its wrap."""
    empty_assistant: str | None = None
    """What an assistant turn without a text is written as, none of it learned; None for its wrap."""
    round_marks: tuple[str, ...] = ()
    """What stands before an answer and what behind it, by which LLaVA's released `preprocess_v1` and
    `preprocess_llama_2` tell rounds apart (`published_masks.found_rounds`); empty where nothing is searched for."""

    def __post_init__(self) -> None:
        for wrap in ("system_wrap", "user", "assistant"):
            count = getattr(self, wrap).count("{text}")
            if count != 1:
                raise ValueError(f"template {self.name!r}, {wrap}: found {count} times {{text}}, expected 1")
        if self.images not in get_args(Images):
            expected = ", ".join(get_args(Images))
            raise ValueError(f"template {self.name!r}, images: found {self.images!r}, expected one of {expected}")

    @property
    def stop(self) -> str:
        """The text that ends an answer, where that is not the end-of-sequence token: what is learned behind one."""
        tail = self.assistant.partition("{text}")[2] + (self.end if self.learn_end else "")
        return "" if "{eos}" in tail else stop_of(self.piece(tail).text)

    def of(self, task: str) -> ChatTemplate:
        """How samples of a task are written."""
        return self.tasks.get(task, self)

    def render(self, turns: Sequence[Turn], *, generate: bool = False) -> list[Piece]:
        """The pieces of a conversation, neighbours of one kind joined; with `generate`, up to where an answer begins.

        Raises:
            ValueError: turns in an order that no conversation has (see `split_system`), or, for a template that keeps
                only images, anything but one image and one answer, or one answer alone.
        """
        if self.wordless is not None and _wordless(turns):
            return self.wordless.render(turns, generate=generate)
        system, turns = split_system(turns, generate)
        if self.images == "only":
            self._check_captions(system, turns)
        return join_pieces(self._pieces(system, turns, generate))

    def _pieces(self, system: str | None, turns: Sequence[Turn], generate: bool) -> Iterator[Piece]:
        written = Piece(self.system, False, special=True) if system is None else Piece(system, False)
        lead = list(self._wrap(self.system_wrap, [written])) if written.text else []
        inside = self.system_inside and bool(turns) and turns[0].role == "user"
        if self.images == "first":
            yield from mark_pieces(IMAGE_MARK * sum(map(count_marks, turns)))
        if not inside:
            yield from lead
        for i, turn in enumerate(turns):
            if turn.role == "user":
                yield self.piece(self.between if i else "")
                if not turn.text and self.empty_user is not None:
                    yield self.piece(self.empty_user)
                    continue
                images, text = ("", turn.text) if turn.literal else self._place_images(turn.text)
                yield from mark_pieces(images)
                opening = lead if inside and i == 0 else []
                told = [Piece(text, False)] if turn.literal else mark_pieces(text)
                yield from self._wrap(self.user, [*opening, *told])
            elif not turn.text and self.empty_assistant is not None:
                yield self.piece(self.empty_assistant)
            else:
                yield self.piece(self.assistant_prompt)
                yield from self._wrap(self.assistant, [Piece(turn.text, turn.learn)])
        if turns and turns[-1].role == "assistant":
            yield self.piece(self.end, self.learn_end and turns[-1].learn)
        if generate:
            yield self.piece(self.assistant_prompt + self.generation_prompt)

    def answer(self, text: str) -> list[Piece]:
        """The end of a prompt, and behind it, learned, what follows where `text` is the answer."""
        asked = Turn(role="user", text=IMAGE_MARK if self.images == "only" else "a")
        prompt = [piece for piece in self._pieces("", (asked,), generate=True) if not piece.mark]
        first, *others = self._wrap(self.assistant, [Piece(text, True)])
        first = first._replace(text=first.text.removeprefix(self.piece(self.generation_prompt).text))
        end = self.piece(self.end if self.learn_end else "", True)
        return join_pieces([*prompt, first, *others, end])

    def _place_images(self, text: str) -> tuple[str, str]:
        """What stands before the wrap of a user turn, and what stands in it."""
        count = text.count(IMAGE_MARK)
        if self.images == "stay" or not count:
            return "", text
        if self.images == "only":
            return "", IMAGE_MARK * count
        # Stripped as LLaVA does, and only where an image stands.
        words = text.replace(IMAGE_MARK, "").strip()
        if self.images == "first":
            return "", words
        if self.images == "before":
            return IMAGE_MARK * count, words
        return "", ((IMAGE_MARK + "\n") * count + words).strip()

    def _check_captions(self, system: str | None, turns: Sequence[Turn]) -> None:
        if system is not None or len(turns) > 2:
            found = len(turns) + (system is not None)
            raise ValueError(f"template {self.name!r}: found {found} turns, expected an image and its caption")
        if turns and turns[0].role == "user" and not count_marks(turns[0]):
            raise ValueError(f"template {self.name!r} keeps only {IMAGE_MARK} of a user turn, which has none")

    def piece(self, wrap: str, learn: bool = False) -> Piece:
        """Text that the template writes."""
        return Piece(wrap.replace("{bos}", self.bos).replace("{eos}", self.eos), learn, special=True)

    def _wrap(self, wrap: str, inner: Sequence[Piece]) -> Iterator[Piece]:
        before, after = wrap.split("{text}")
        learn = bool(inner) and inner[-1].learn
        yield self.piece(before, learn)
        yield from inner
        yield self.piece(after, learn)


def _wordless(turns: Sequence[Turn]) -> bool:
    asked = [turn for turn in turns if turn.role == "user"]
    return bool(asked) and not any(turn.literal or turn.text.replace(IMAGE_MARK, "").strip() for turn in asked)


def count_marks(turn: Turn, mark: str = IMAGE_MARK) -> int:
    """How many of a mark a turn has; in other turns than the user's, and in literal ones, a mark is text."""
    return turn.text.count(mark) if turn.role == "user" and not turn.literal else 0


def mark_pieces(text: str) -> Iterator[Piece]:
    """Masked text, cut at its marks."""
    parts = enumerate(_any_of(tuple(MARKS)).split(text))
    return (Piece(part.replace(LITERAL_MARK, IMAGE_MARK), False, mark=bool(i % 2)) for i, part in parts)


@cache
def _any_of(marks: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("(" + "|".join(map(re.escape, marks)) + ")")


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
