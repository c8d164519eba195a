"""What ends an answer: derived from what a template writes behind one, so that it is what was learned."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast


def stop_of(tail: str, tokens: Iterable[str] = ()) -> str:
    """The text that ends an answer.

    Args:
        tail: What a template writes behind an answer.
        tokens: Texts that are one token each, whatever stands around them: the first of them in `tail` is the end.

    Returns:
        Without such a token, all of `tail` but blanks and line ends behind it; line ends alone are an end too. Empty if
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
