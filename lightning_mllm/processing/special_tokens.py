"""The special tokens that a tokenizer itself writes."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerFast


def padding_token(tokenizer: PreTrainedTokenizerFast) -> int:
    """What rows are padded with.

    Raises:
        ValueError: The tokenizer has neither a pad nor an unk nor an eos token.
    """
    spare: list[Any] = [tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id]
    if (found := next((token for token in spare if token is not None), None)) is None:
        raise ValueError("found a tokenizer without pad, unk and eos tokens, expected one of them to pad with")
    return int(found)


def tokens_around(tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before a text (BOS, or none), and behind it."""
    coded = tokenizer("a", return_special_tokens_mask=True)
    special: list[int] = coded["special_tokens_mask"]  # pyright: ignore[reportAssignmentType]
    tokens: list[int] = coded["input_ids"]  # pyright: ignore[reportAssignmentType]
    if 0 not in special:
        return [], []
    return tokens[: special.index(0)], tokens[len(tokens) - special[::-1].index(0) :]
