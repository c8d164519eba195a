"""Where a row of tokens is cut: a long prompt, a long answer, and all of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from lightning_mllm.contracts import IGNORE, ImageRef, OverlongError, TokenKind
from lightning_mllm.processing.marks import Row


@dataclass(frozen=True, kw_only=True)
class TextLimits:
    """Where a long prompt and a long answer are cut, each for itself (BLIP-2's and InstructBLIP's released code).

    What the tokenizer itself puts behind a text (T5's end token, BERT's [SEP]) counts and is never cut; an end that a
    template writes (LLaMA's) is text like any other.
    """

    prompt: int | None = None
    """Tokens of the text before the answer, a begin token included; None for no limit of its own."""
    answer: int | None = None
    """Tokens that are learned, the answer's end included, and a begin token where one is; cut on the right."""
    cut: Literal["left", "right"] = "left"
    """Where prompts are cut: a begin token at the left end is kept."""

    def __post_init__(self) -> None:
        for name in ("prompt", "answer"):
            if (found := getattr(self, name)) is not None and found < 2:
                raise ValueError(f"limits.{name}: found {found}, expected at least 2")
        if self.cut not in ("left", "right"):
            raise ValueError(f"limits.cut: found {self.cut!r}, expected left or right")


Masks = Literal["strict", "published"]
"""What becomes of a sample in which nothing is learned.

strict: It is refused.
published: It stays in its batch and teaches nothing, as in LLaVA (haotian-liu/LLaVA, llava/train/train.py). So do those
    whose rounds that code cannot tell apart (`published_masks.found_rounds`), and those of which `max_length` leaves no
    answer; an image that would be cut is left out with all behind it, which no token before it can tell.
"""


def cut_texts(row: Row, limits: TextLimits, special: Collection[int]) -> tuple[Row, list[str]]:
    """The row within the limits of its prompt and its answer, and what was cut, in words.

    Visual slots are never cut, nor are `special` tokens at the ends of the prompt.
    """
    tokens, labels, kinds = row
    learned = [i for i, label in enumerate(labels) if label != IGNORE]
    start = learned[0] if learned else len(tokens)
    prompt = [i for i in range(start) if kinds[i] == TokenKind.TEXT]
    kept, cuts = set(range(len(tokens))), []
    if (limit := limits.prompt) is not None and len(prompt) > limit:
        # The token that begins a row, or for an encoder ends it, is no text to cut.
        begin = prompt[:1] if tokens[prompt[0]] in special else []
        end = prompt[-1:] if tokens[prompt[-1]] in special else []
        inner = prompt[len(begin) : len(prompt) - len(end)]
        room = limit - len(begin) - len(end)
        kept -= set(inner[: len(inner) - room] if limits.cut == "left" else inner[room:])
        cuts.append(f"a prompt of {len(prompt)} tokens, expected at most {limit}")
    if (limit := limits.answer) is not None and len(learned) > limit:
        kept -= set(learned[limit:])
        cuts.append(f"an answer of {len(learned)} tokens, expected at most {limit}")
    if not cuts:
        return row, []
    return tuple([values[i] for i in sorted(kept)] for values in row), cuts  # pyright: ignore[reportReturnType]


def first_tokens(tokens: Sequence[int], limit: int, suffix: Sequence[int]) -> list[int]:
    """The positions of `limit` tokens from the left, those of the tokenizer's `suffix` at the end among them."""
    behind = len(suffix) if list(tokens[-len(suffix) :]) == list(suffix) else 0
    return [*range(limit - behind), *range(len(tokens) - behind, len(tokens))]


def cut_answer(tokens: list[int], limits: TextLimits, suffix: Sequence[int]) -> tuple[list[int], list[str]]:
    """An answer within its limit, the tokenizer's `suffix` at its end kept, and what was cut, in words."""
    limit = limits.answer
    if limit is None or len(tokens) <= limit:
        return tokens, []
    kept = [tokens[i] for i in first_tokens(tokens, limit, suffix)]
    return kept, [f"an answer of {len(tokens)} tokens, expected at most {limit}"]


def cut_row(
    row: Row,
    images: Sequence[ImageRef],
    max_length: int,
    image_length: int,
    suffix: Sequence[int],
    generate: bool,
    masks: Masks,
) -> tuple[Row, Sequence[ImageRef]]:
    """What `max_length` lets in of a row that is longer, and of its images.

    Args:
        row: Tokens, labels and kinds.
        images: Those that the row shows.
        max_length: Tokens the row may have.
        image_length: Tokens of one image.
        suffix: What the tokenizer puts behind a text, which is never cut.
        generate: Whether the row is a prompt, of which nothing may be cut and in which nothing is learned.
        masks: What becomes of a row in which nothing is learned.

    Raises:
        OverlongError: a prompt that is too long; and, where `masks` are strict, a row where cutting the end would
            touch an image or leave nothing to learn.
    """
    tokens, labels, kinds = row
    length, limit, strict = len(tokens), max_length, masks == "strict"
    if generate:
        raise OverlongError(f"found a prompt of {length} tokens, expected at most {limit}")
    if any(kind != TokenKind.TEXT for kind in kinds[limit:]):
        if strict:
            raise OverlongError(f"found {length} tokens, expected at most {limit}: cutting the end would cut an image")
        slots = [i for i, kind in enumerate(kinds) if kind != TokenKind.TEXT]
        images = images[: sum(i < limit for i in slots) // image_length]
        limit = min(limit, slots[len(images) * image_length])
    if strict and all(label == IGNORE for label in labels[1:limit]):
        raise OverlongError(f"found {length} tokens, expected at most {limit}: cutting the end would leave no answer")
    kept = first_tokens(tokens, limit, suffix)
    return ([tokens[i] for i in kept], [labels[i] for i in kept], [kinds[i] for i in kept]), images
