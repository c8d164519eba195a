"""What a Q-Former reads beside the image: a text in the tokens of its own vocabulary (BERT's)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerFast

KNOWN = 4096
"""Questions whose tokens are kept; where there are more, all are forgotten."""


@dataclass(frozen=True, kw_only=True)
class QueryText:
    """Texts as a Q-Former's tokens, too long ones cut on the left (InstructBLIP, arXiv 2305.06500, released code)."""

    tokenizer: PreTrainedTokenizerFast
    max_length: int = 128
    """Tokens, those that the tokenizer puts around a text included."""
    _known: dict[str, tuple[list[int], list[str]]] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Questions come again with other images."""

    def __post_init__(self) -> None:
        if self.max_length < 3:
            raise ValueError(f"query text: found a length of {self.max_length}, expected at least 3")

    def __call__(self, text: str) -> tuple[Int[Tensor, " L"], list[str]]:
        """Tokens i64[L], L at most `max_length`; and what was cut, in words."""
        if text not in self._known:
            if len(self._known) >= KNOWN:
                self._known.clear()
            self._known[text] = self._coded(text)
        tokens, told = self._known[text]
        return torch.tensor(tokens), [*told]

    def _coded(self, text: str) -> tuple[list[int], list[str]]:
        # Special tokens in a question are text; those around it are the tokenizer's.
        coded = self.tokenizer(text, split_special_tokens=True, return_special_tokens_mask=True, verbose=False)
        tokens: list[int] = coded["input_ids"]  # pyright: ignore[reportAssignmentType]
        mask: list[int] = coded["special_tokens_mask"]  # pyright: ignore[reportAssignmentType]
        cut = max(len(tokens) - self.max_length, 0)
        begin = mask.index(0) if cut else 0
        told = f"a question of {len(tokens)} tokens for the Q-Former, expected at most {self.max_length}"
        return tokens[:begin] + tokens[begin + cut :], [told] if cut else []
