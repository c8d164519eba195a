"""What a Q-Former reads beside the image: a text in the tokens of its own vocabulary (BERT's)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, kw_only=True)
class QueryText:
    """Texts as a Q-Former's tokens, too long ones cut on the left (InstructBLIP, arXiv 2305.06500, released code)."""

    tokenizer: PreTrainedTokenizerFast
    max_length: int = 128
    """Tokens, those that the tokenizer puts around a text included."""

    def __post_init__(self) -> None:
        if self.max_length < 3:
            raise ValueError(f"query text: found a length of {self.max_length}, expected at least 3")

    def cuts(self, text: str) -> bool:
        """Whether a text is too long."""
        return len(self.tokenizer(text, truncation=False, verbose=False)["input_ids"]) > self.max_length

    def __call__(self, text: str) -> Int[Tensor, " L"]:
        self.tokenizer.truncation_side = "left"
        # Special tokens in a question are text; those around it are the tokenizer's.
        coded = self.tokenizer(
            text, truncation=True, max_length=self.max_length, split_special_tokens=True, verbose=False
        )
        return torch.tensor(coded["input_ids"])
