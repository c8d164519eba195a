"""Pieces of text to tokens: special tokens where the template wrote them, and nowhere else."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from lightning_mllm.processing.pieces import Piece

STAND_IN = "\ufdd0\ufdd1"
"""Noncharacters of Unicode: behind a special token's text they make its stand-in, which no text holds."""


class TextTokenizer:
    """Tokenises a run of pieces as one string, so that pieces cannot change how words are cut.

    What the tokenizer does around special tokens (a space put before the text behind one, say) is what it does to the
    whole string. The string goes through a copy of its pipeline that knows stand-ins in place of special tokens, each
    with the flags of its own: where the template wrote a special token, its stand-in is written, and its id read back.

    Args:
        tokenizer: A fast tokenizer.
        begins: Whether special tokens at the start of a run stand before the text, as those do that a tokenizer puts
            there: the text behind them is tokenised as one of its own.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, begins: bool = True) -> None:
        self.tokenizer = tokenizer
        self.begins = begins

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
        backend, ids = self._backend
        for start, stop in ((0, begin), (begin, len(text))):
            coded = backend.encode(text[start:stop], add_special_tokens=False)
            for token, (first, end) in zip(coded.ids, coded.offsets, strict=True):
                if (mark := text.find(STAND_IN, start + first, start + end)) >= 0:
                    # A special token may hold the white space behind it (`rstrip`).
                    end = mark + len(STAND_IN) - start
                tokens.append(ids.get(token, token))
                # The end is 0 for a token that stands for no character: a space put before the first one.
                marks.append(learned[start + max(end - 1, 0)])
        return tokens, marks

    def _written(self, piece: Piece) -> str:
        if STAND_IN in piece.text:
            raise ValueError(f"found the noncharacters {STAND_IN!a} in a text, expected none")
        if not piece.special or not self._special:
            return piece.text
        return self._pattern.sub(lambda found: found[0] + STAND_IN, piece.text)

    @cached_property
    def _special(self) -> list[str]:
        """The texts of special tokens, longest first."""
        added = self.tokenizer.added_tokens_decoder.values()
        return sorted((token.content for token in added if token.special and token.content), key=len, reverse=True)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self._special)))

    @cached_property
    def _begin(self) -> re.Pattern[str]:
        return re.compile(f"(?:(?:{self._pattern.pattern}){STAND_IN})*")

    @cached_property
    def _backend(self) -> tuple[Tokenizer, dict[int, int]]:
        """The copy, and what its ids of added tokens are in the tokenizer."""
        state = json.loads(self.tokenizer.backend_tokenizer.to_str())
        state |= {"added_tokens": [], "truncation": None, "padding": None, "post_processor": None}
        state["normalizer"] = self._with_stand_ins(state["normalizer"])
        state["model"] = _without_special(state["model"], frozenset(self._special))
        backend: Any = Tokenizer.from_str(json.dumps(state))
        ids: dict[int, int] = {}
        for i, token in sorted(self.tokenizer.added_tokens_decoder.items()):
            content = token.content + STAND_IN if token.special else token.content
            kept = backend.normalizer is None or backend.normalizer.normalize_str(content) == content
            added = AddedToken(
                content,
                special=False,
                normalized=token.normalized and (kept or not token.special),
                lstrip=token.lstrip,
                rstrip=token.rstrip,
                single_word=token.single_word,
            )
            backend.add_tokens([added])
            ids[backend.token_to_id(content)] = i
        return backend, ids

    def _with_stand_ins(self, normalizer: object) -> object:
        """A normalizer (JSON) whose patterns name special tokens (`language/sentencepiece_tokenizer.py`), with the
        stand-ins in their place."""
        if isinstance(normalizer, list):
            return [self._with_stand_ins(each) for each in normalizer]
        if isinstance(normalizer, dict):
            return {name: self._with_stand_ins(each) for name, each in normalizer.items()}
        if isinstance(normalizer, str) and "(?" in normalizer and self._special:
            escaped = "|".join(re.escape(re.escape(content)) for content in self._special)
            return re.sub(rf"(?<=[!=|])({escaped})(?=[|)])", lambda found: found[0] + STAND_IN, normalizer)
        return normalizer

    def __getstate__(self) -> dict[str, object]:
        return {"tokenizer": self.tokenizer, "begins": self.begins}


def _without_special(model: dict[str, Any], special: frozenset[str]) -> dict[str, Any]:
    """A model (JSON) that makes no special token of text: it knows their stand-ins in their place.

    Raises:
        ValueError: A type of model that tokenizers did not have when this was written.
    """
    if model["type"] not in ("Unigram", "BPE", "WordPiece", "WordLevel"):
        raise ValueError(f"found a tokenizer of type {model['type']}, expected Unigram, BPE, WordPiece or WordLevel")

    def renamed(piece: str | None) -> str | None:
        return f"{piece}{STAND_IN}" if piece in special else piece

    if model["type"] == "Unigram":
        return {**model, "vocab": [[renamed(piece), score] for piece, score in model["vocab"]]}
    changed = {
        "vocab": {renamed(piece): i for piece, i in model["vocab"].items()},
        "unk_token": renamed(model["unk_token"]),
    }
    if model["type"] == "BPE":
        changed["merges"] = [pair for pair in model["merges"] if not {*pair, "".join(pair)} & set(special)]
    return {**model, **changed}
