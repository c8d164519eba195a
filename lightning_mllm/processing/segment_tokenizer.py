"""Tokens of a conversation, segment by segment: what begins with a special token that a template wrote.

    <s>USER:\\nq\\nASSISTANT: a | </s>USER:\\nq\\nASSISTANT: a | </s>

A tokenizer finds its added tokens first and tokenises what stands between them piece by piece, so that a segment's
tokens are the same wherever it stands. Short questions and answers come again and again: their tokens are kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from transformers import PreTrainedTokenizerFast

from lightning_mllm.processing.stand_ins import STAND_IN, special_texts
from lightning_mllm.processing.text_tokenizer import Piece, TextTokenizer

KEPT = 2_000_000
"""Characters of segments whose tokens are kept; where there are more, all are forgotten."""


class SegmentTokenizer(TextTokenizer):
    """A `TextTokenizer` that keeps the tokens of segments, for tokenizers that allow it (`segments_stand_alone`).

    Args:
        tokenizer: A fast tokenizer with special tokens.
        begins: False: a tokenizer's own template writes a whole string.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, begins: bool = False) -> None:
        assert not begins
        super().__init__(tokenizer, begins)
        special = "|".join(map(re.escape, special_texts(tokenizer)))
        self._starts = re.compile(f"(?:{special}){STAND_IN}")
        self._kept: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
        self._held = 0

    def __call__(self, pieces: Sequence[Piece]) -> tuple[list[int], list[bool]]:
        text, learned = self.joined(pieces)
        tokens, marks, start = [], [], 0
        for segment in self._segments(text):
            ids, places = self._kept.get(segment) or self._coded(segment)
            tokens += ids
            marks += [learned[start + place] for place in places]
            start += len(segment)
        return tokens, marks

    def _segments(self, text: str) -> Iterator[str]:
        start = 0
        for found in self._starts.finditer(text):
            yield text[start : found.start()]
            start = found.start()
        yield text[start:]

    def _coded(self, segment: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        if self._held > KEPT:
            self._kept.clear()
            self._held = 0
        self._held += len(segment)
        ids, places = self.coded(segment)
        # Tuples of integers, unlike lists, are none that the garbage collector visits.
        return self._kept.setdefault(segment, (tuple(ids), tuple(places)))


def segments_stand_alone(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether the tokens of a text are those of its segments: special tokens are found before the text is normalised,
    whatever stands beside them, and no other added token can reach into one."""
    added = [token for token in tokenizer.added_tokens_decoder.values() if token.content]
    special, others = special_texts(tokenizer), [token.content for token in added if not token.special]
    plain = not any(token.lstrip or token.rstrip or token.single_word for token in added)
    first = not any(token.normalized for token in added if token.special)
    return bool(special) and plain and first and not any(_reaches(other, text) for other in others for text in special)


def _reaches(text: str, other: str) -> bool:
    """Whether the end of a text may be the beginning of another."""
    return any(other.startswith(text[start:]) for start in range(1, len(text)))


def text_tokenizer(tokenizer: PreTrainedTokenizerFast, begins: bool) -> TextTokenizer:
    """What tokenises the pieces of a chat template; `begins` as for `TextTokenizer`.

    A tokenizer's own template writes a whole string, as transformers tokenises it: nothing begins.
    """
    if not begins and segments_stand_alone(tokenizer):
        return SegmentTokenizer(tokenizer)
    return TextTokenizer(tokenizer, begins)
