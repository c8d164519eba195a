"""Marks in the text of user turns, and what stands in a row of tokens where one does.

    boundary   an image V, in views
    none       [IMAGE x V] for each view
    tokens     <im_start> [IMAGE x V] for each view <im_end>    words, of the language model's own table (LLaVA)
    vectors    [BEGIN, IMAGE x V, END] for each view            slots, of learned vectors (CogVLM, SPHINX)

A mark of another kind (a region of an image, a sound) is one more row of `MARKS`, and a net that fills its slots.

Legend: V visual vectors of a view.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from lightning_mllm.contracts import IGNORE, IMAGE_MARK, TokenKind

IMAGE_BEGIN_TOKEN, IMAGE_END_TOKEN = "<im_start>", "<im_end>"
"""LLaVA's marks around an image (`mm_use_im_start_end`)."""

Boundary = Literal["none", "tokens", "vectors"]

Row = tuple[list[int], list[int], list[int]]
"""Tokens, labels and kinds, of one length."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What a mark stands for."""

    kind: int
    """The `TokenKind` of its slots."""
    slots: Callable[[Sequence[int]], Sequence[int]]
    """Visual vectors of each view of an image, as the net gives them -> slots of each span in the mark's place."""
    items: str = ""
    """The field of `Sample` that holds what such marks stand for, one each; empty: a mark stands for nothing else."""
    bounded: bool = False
    """Whether a net's image boundary stands around its spans."""


MARKS: dict[str, Mark] = {
    IMAGE_MARK: Mark(kind=TokenKind.IMAGE, slots=lambda vectors: vectors, items="images", bounded=True),
}


def mark_row(mark: str, boundary: Boundary, vectors: Sequence[int], vocabulary: Mapping[str, int], spare: int) -> Row:
    """The tokens in the place of a mark, none of them learned.

    Args:
        mark: Its text.
        boundary: What stands around an image.
        vectors: V of each view of an image; what stands around them is not counted.
        vocabulary: Of the tokenizer.
        spare: The token of a slot, which the network overwrites, where the mark is no token itself.

    Raises:
        ValueError: An unknown `boundary`, or "tokens" that the tokenizer does not have.
    """
    if boundary not in get_args(Boundary):
        raise ValueError(f"image_boundary: found {boundary!r}, expected one of {', '.join(get_args(Boundary))}")
    row, around = MARKS[mark], boundary if MARKS[mark].bounded else "none"
    begin, end = int(TokenKind.IMAGE_BEGIN), int(TokenKind.IMAGE_END)
    spans = [[int(row.kind)] * count for count in row.slots(vectors)]
    kinds = [kind for span in spans for kind in ([begin, *span, end] if around == "vectors" else span)]
    tokens = [vocabulary.get(mark, spare)] * len(kinds)
    if around == "tokens":
        for token in (IMAGE_BEGIN_TOKEN, IMAGE_END_TOKEN):
            if token not in vocabulary:
                raise ValueError(f"image_boundary: found no token {token} in the tokenizer, expected one")
        tokens = [vocabulary[IMAGE_BEGIN_TOKEN], *tokens, vocabulary[IMAGE_END_TOKEN]]
        kinds = [begin, *kinds, end]
    return tokens, [IGNORE] * len(tokens), kinds
