"""What ends an answer: derived from what a template writes behind one, so that it is what was learned."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerFast

from lightning_mllm.processing.text_tokenizer import Piece, TextTokenizer


def stop_of(tail: str, tokens: Iterable[str] = ()) -> str:
    """The text that ends an answer.

    Args:
        tail: What a template writes behind an answer.
        tokens: Texts that are one token each, whatever stands around them: the first of them in `tail` is the end.

    Returns:
        Without such a token, all of `tail` but white space behind it; line ends alone are an end too. Empty if
        nothing in `tail` can be told from an answer.
    """
    found = [(tail.index(token), -len(token), token) for token in tokens if token and token in tail]
    return min(found)[2] if found else tail.rstrip() or tail.strip(" ")


@dataclass(frozen=True)
class StopText:
    """A text that ends an answer as soon as it is written."""

    tokenizer: PreTrainedTokenizerFast
    text: str

    @property
    def window(self) -> int:
        """How many tokens hold the text: each has a byte of it at least, and one more tells how the first begins."""
        return len(self.text.encode()) + 1

    def __call__(self, tokens: Sequence[int]) -> bool:
        """Whether the last of an answer's tokens, at most `window` of which are read, completes the text."""
        last = list(tokens[-self.window :])
        return self.text in self.tokenizer.decode(last, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@dataclass(frozen=True)
class StopRule:
    """What ends an answer of a tokenizer and a template."""

    tokenizer: PreTrainedTokenizerFast
    encode: TextTokenizer
    stop: str
    """The text that the template writes behind an answer; empty for none but the tokenizer's end token."""

    @property
    def tokens(self) -> list[int]:
        """The tokenizer's end token, and the template's end where that is one token."""
        end: Any = self.tokenizer.eos_token_id
        ends = [] if end is None else [int(end)]
        return ends + [token for token in self._stop if len(self._stop) == 1 and token not in ends]

    @property
    def text(self) -> StopText | None:
        """The text that ends an answer where no special token does: it may be written in several ways."""
        one = self.tokenizer.added_tokens_decoder.get(self._stop[0]) if len(self._stop) == 1 else None
        return StopText(self.tokenizer, self.stop) if self.stop and not (one and one.special) else None

    @property
    def strings(self) -> list[str]:
        """Texts of several tokens that end an answer: what `tokens` cannot say."""
        return [self.stop] if self.stop and len(self._stop) != 1 else []

    @cached_property
    def _stop(self) -> list[int]:
        """The template's end as it is learned behind a word; none where it shares a token with the word."""
        if not self.stop:
            return []
        vocabulary = self.tokenizer.get_added_vocab()
        if self.stop in vocabulary:
            return [vocabulary[self.stop]]
        alone, stopped = (self.encode([Piece(text, True, special=True)])[0] for text in ("a", f"a{self.stop}"))
        return stopped[len(alone) :] if stopped[: len(alone)] == alone else []
