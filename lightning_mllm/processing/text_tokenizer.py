"""Pieces of text to tokens: special tokens where the template wrote them, and nowhere else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

from transformers import PreTrainedTokenizerFast

from lightning_mllm.processing.stand_ins import STAND_IN, special_texts, with_stand_ins


class Piece(NamedTuple):
    """A run of text that is wholly learned or wholly not, or a mark (`marks.MARKS`)."""

    text: str
    learn: bool
    mark: bool = False
    special: bool = False
    """Whether the template wrote it: special tokens written in it are special tokens. In other pieces they are text."""


class TextTokenizer:
    """Tokenises a run of pieces as one string, so that pieces cannot change how words are cut.

    What the tokenizer does around special tokens (a space put before the text behind one, say) is what it does to the
    whole string. The string goes through a copy of its pipeline that knows stand-ins in place of special tokens: where
    the template wrote a special token, its stand-in is written, and its id read back.

    Args:
        tokenizer: A fast tokenizer.
        begins: Whether special tokens at the start of a run stand before the text, as those do that a tokenizer puts
            there: the text behind them is tokenised as one of its own.

    Raises:
        ValueError: A tokenizer of an unknown type.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, begins: bool = True) -> None:
        self.tokenizer = tokenizer
        self.begins = begins
        self._backend, self._ids = with_stand_ins(tokenizer)
        special = "|".join(map(re.escape, special_texts(tokenizer)))
        self._special = re.compile(special) if special else None
        self._begin = re.compile(f"(?:(?:{special}){STAND_IN})*") if begins and special else None

    def __reduce__(self) -> tuple[type[TextTokenizer], tuple[PreTrainedTokenizerFast, bool]]:
        return type(self), (self.tokenizer, self.begins)

    def __call__(self, pieces: Sequence[Piece]) -> tuple[list[int], list[bool]]:
        """Tokens T, and for each whether it is learned: whether its last character is.

        Raises:
            ValueError: A turn holds the text of a stand-in.
        """
        text, learned = self.joined(pieces)
        begin = self._begin.match(text).end() if self._begin else 0  # pyright: ignore[reportOptionalMemberAccess]
        (first, places), (tokens, others) = self.coded(text[:begin]), self.coded(text[begin:])
        return first + tokens, [learned[place] for place in places] + [learned[begin + place] for place in others]

    def joined(self, pieces: Sequence[Piece]) -> tuple[str, list[bool]]:
        """Their text with stand-ins, and for each character whether it is learned."""
        written = [(self._written(piece), piece.learn) for piece in pieces]
        learned = list(chain.from_iterable([learn] * len(text) for text, learn in written))
        return "".join([text for text, _ in written]), learned

    def coded(self, text: str) -> tuple[list[int], list[int]]:
        """Tokens of a text with stand-ins, and where the last character of each stands."""
        coded = self._backend.encode(text, add_special_tokens=False)
        # A special token may hold the white space behind it (`rstrip`); a token that stands for no character ends at 0.
        places = [text.find(STAND_IN, start, end) + 1 or max(end - 1, 0) for start, end in coded.offsets]
        return [self._ids.get(token, token) for token in coded.ids], places

    def _written(self, piece: Piece) -> str:
        if STAND_IN in piece.text:
            raise ValueError(f"found the noncharacters {STAND_IN!a} in a text, expected none")
        special = piece.special and self._special
        return special.sub(lambda found: found[0] + STAND_IN, piece.text) if special else piece.text


def check_characters(text: str) -> None:
    """ValueError for half of a surrogate pair (half an emoji), which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"found half of a character ({text[error.start]!a}), expected whole ones") from None
