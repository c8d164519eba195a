"""Pieces of text to tokens: special tokens where the template wrote them, and nowhere else."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from lightning_mllm.processing.chat import Piece

STAND_IN = "\ufdd0\ufdd1"
"""Noncharacters of Unicode: behind a special token's text they make its stand-in, which no text holds."""


class TextTokenizer:
    """Tokenises a run of pieces as one string, so that pieces cannot change how words are cut.

    What the tokenizer does around special tokens (a blank put before the text behind one, say) is what it does to the
    whole string. The string goes through a copy of its pipeline that takes special tokens for text; where the template
    wrote one, a stand-in with the same flags is written, and its id replaced by the special token's.

    Args:
        tokenizer: A fast tokenizer.
        begins: Whether special tokens at the start of a run stand before the text, as those do that a tokenizer puts
            there: the text behind them is tokenised as one of its own.
        special_in_turns: Whether special tokens written in turns are special tokens too, as those of the template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, begins: bool = True, special_in_turns: bool = False) -> None:
        self.tokenizer = tokenizer
        self.begins = begins
        self.special_in_turns = special_in_turns

    def __call__(self, pieces: Sequence[Piece]) -> tuple[list[int], list[bool]]:
        """Tokens T, and for each whether it is learned: whether its last character is.

        Raises:
            ValueError: A turn holds the text of a stand-in.
        """
        text, learned = "", []
        for piece in pieces:
            written = self._written(piece)
            text += written
            learned += [piece.learn] * len(written)
        begin = self._begin.match(text).end() if self.begins and self._special else 0  # pyright: ignore
        tokens, marks = [], []
        for start, stop in ((0, begin), (begin, len(text))):
            coded = self._backend.encode(text[start:stop], add_special_tokens=False)
            tokens += [self._ids.get(token, token) for token in coded.ids]
            # The end is 0 for a token that stands for no character: a blank put before the first one.
            marks += [learned[start + max(end - 1, 0)] for _, end in coded.offsets]
        return tokens, marks

    def _written(self, piece: Piece) -> str:
        if STAND_IN in piece.text:
            raise ValueError(f"found the noncharacters {STAND_IN!a} in a text, expected none")
        if not (piece.special or self.special_in_turns) or not self._special:
            return piece.text
        return self._pattern.sub(lambda found: found[0] + STAND_IN, piece.text)

    @cached_property
    def _special(self) -> dict[int, AddedToken]:
        return {i: token for i, token in self.tokenizer.added_tokens_decoder.items() if token.special and token.content}

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        longest_first = sorted((token.content for token in self._special.values()), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)))

    @cached_property
    def _begin(self) -> re.Pattern[str]:
        return re.compile(f"(?:(?:{self._pattern.pattern}){STAND_IN})*")

    @cached_property
    def _ids(self) -> dict[int, int]:
        """Ids of the stand-ins -> those of the special tokens."""
        stand_ins = {i: self._backend.token_to_id(token.content + STAND_IN) for i, token in self._special.items()}
        return {stand_in: i for i, stand_in in stand_ins.items() if stand_in is not None}

    @cached_property
    def _backend(self) -> Tokenizer:
        backend: Any = copy.deepcopy(self.tokenizer.backend_tokenizer)
        backend.encode_special_tokens = True
        backend.no_truncation()
        backend.no_padding()
        for token in self._special.values():
            content = token.content + STAND_IN
            kept = backend.normalizer is None or backend.normalizer.normalize_str(content) == content
            stand_in = AddedToken(
                content,
                special=False,
                normalized=token.normalized and kept,
                lstrip=token.lstrip,
                rstrip=token.rstrip,
                single_word=token.single_word,
            )
            backend.add_tokens([stand_in])
        return backend

    def __getstate__(self) -> dict[str, Any]:
        # The copy is built again: what takes special tokens for text is no part of a pickled pipeline.
        return {"tokenizer": self.tokenizer, "begins": self.begins, "special_in_turns": self.special_in_turns}
