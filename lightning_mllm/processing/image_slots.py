"""What stands in a row of tokens where an image does.

    none:     [IMAGE x V] for each view
    tokens:   <im_start> [IMAGE x V] for each view <im_end>    words, of the language model's own table (LLaVA)
    vectors:  [BEGIN, IMAGE x V, END] for each view            slots, of learned vectors (CogVLM, SPHINX)

Legend: V visual vectors of a view.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from lightning_mllm.contracts import IGNORE, TokenKind

IMAGE_BEGIN_TOKEN, IMAGE_END_TOKEN = "<im_start>", "<im_end>"
"""LLaVA's marks around an image (`mm_use_im_start_end`)."""

ImageEnds = Literal["none", "tokens", "vectors"]

Row = tuple[list[int], list[int], list[int]]
"""Tokens, labels and kinds, of one length."""

_BEGIN, _IMAGE, _END = (int(kind) for kind in (TokenKind.IMAGE_BEGIN, TokenKind.IMAGE, TokenKind.IMAGE_END))


def image_slots(ends: ImageEnds, image_id: int, vectors: Sequence[int], vocabulary: Mapping[str, int]) -> Row:
    """The tokens of one image, none of them learned.

    Args:
        ends: What stands around it.
        image_id: The token of a slot, which the network overwrites.
        vectors: V of each view; the ends are not counted.
        vocabulary: Of the tokenizer.

    Raises:
        ValueError: unknown `ends`, or "tokens" that the tokenizer does not have.
    """
    if ends not in get_args(ImageEnds):
        raise ValueError(f"image_boundary: found {ends!r}, expected one of {', '.join(get_args(ImageEnds))}")
    begin, end = ([_BEGIN], [_END]) if ends == "vectors" else ([], [])
    kinds = [kind for count in vectors for kind in (*begin, *[_IMAGE] * count, *end)]
    tokens = [image_id] * len(kinds)
    if ends == "tokens":
        for token in (IMAGE_BEGIN_TOKEN, IMAGE_END_TOKEN):
            if token not in vocabulary:
                raise ValueError(f"image_boundary: found no token {token} in the tokenizer, expected one")
        tokens = [vocabulary[IMAGE_BEGIN_TOKEN], *tokens, vocabulary[IMAGE_END_TOKEN]]
        kinds = [_BEGIN, *kinds, _END]
    return tokens, [IGNORE] * len(tokens), kinds
