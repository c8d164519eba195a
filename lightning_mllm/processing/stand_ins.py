"""A copy of a tokenizer's pipeline that knows stand-ins in place of special tokens, each with the flags of its own."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

STAND_IN = "\ufdd0\ufdd1"
"""Noncharacters of Unicode: behind a special token's text they make its stand-in, which no text holds."""


def special_texts(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The texts of special tokens, longest first."""
    added = tokenizer.added_tokens_decoder.values()
    return sorted((token.content for token in added if token.special and token.content), key=len, reverse=True)


def with_stand_ins(tokenizer: PreTrainedTokenizerFast) -> tuple[Tokenizer, dict[int, int]]:
    """The copy, and what its ids of added tokens are in the tokenizer.

    Raises:
        ValueError: A type of model that tokenizers did not have when this was written.
    """
    special = special_texts(tokenizer)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state |= {"added_tokens": [], "truncation": None, "padding": None, "post_processor": None}
    state["normalizer"] = _normalizer(state["normalizer"], special)
    state["model"] = _without_special(state["model"], frozenset(special))
    backend: Any = Tokenizer.from_str(json.dumps(state))
    ids: dict[int, int] = {}
    for i, token in sorted(tokenizer.added_tokens_decoder.items()):
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


def _normalizer(normalizer: object, special: Sequence[str]) -> object:
    """A normalizer (JSON) whose patterns name special tokens (`language/sentencepiece_tokenizer.py`), with the
    stand-ins in their place."""
    if isinstance(normalizer, list):
        return [_normalizer(each, special) for each in normalizer]
    if isinstance(normalizer, dict):
        return {name: _normalizer(each, special) for name, each in normalizer.items()}
    if isinstance(normalizer, str) and "(?" in normalizer and special:
        escaped = "|".join(re.escape(re.escape(content)) for content in special)
        return re.sub(rf"(?<=[!=|])({escaped})(?=[|)])", lambda found: found[0] + STAND_IN, normalizer)
    return normalizer


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
