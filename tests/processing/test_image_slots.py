from __future__ import annotations

import pytest

from lightning_mllm.contracts import IGNORE, TokenKind
from lightning_mllm.processing.image_slots import ImageEnds, image_slots

I, B, E = (int(kind) for kind in (TokenKind.IMAGE, TokenKind.IMAGE_BEGIN, TokenKind.IMAGE_END))  # noqa: E741
WORDS = {"<im_start>": 7, "<im_end>": 8}


@pytest.mark.parametrize(
    ("image_boundary", "views", "tokens", "kinds"),
    [
        ("none", 1, [3, 3], [I, I]),
        ("none", 2, [3, 3, 3, 3], [I, I, I, I]),
        ("tokens", 1, [7, 3, 3, 8], [B, I, I, E]),
        ("tokens", 2, [7, 3, 3, 3, 3, 8], [B, I, I, I, I, E]),
        ("vectors", 1, [3, 3, 3, 3], [B, I, I, E]),
        ("vectors", 2, [3] * 8, [B, I, I, E, B, I, I, E]),
    ],
)
def test_an_image_in_full(image_boundary: ImageEnds, views: int, tokens: list[int], kinds: list[int]) -> None:
    row = image_slots(image_boundary, image_id=3, vectors=[2] * views, vocabulary=WORDS)
    assert row == (tokens, [IGNORE] * len(tokens), kinds)


@pytest.mark.parametrize(
    ("vectors", "views", "count"), [(1225, 1, 1227), (289, 1, 291), (289, 5, 1455), (289, 10, 2910)]
)
def test_published_lengths(vectors: int, views: int, count: int) -> None:
    """CogVLM at 490 pixels; SPHINX, its 1k and its 2k."""
    tokens, _, kinds = image_slots("vectors", 0, [vectors] * views, {})
    assert len(tokens) == len(kinds) == count


def test_parts_that_are_shown_with_fewer_vectors() -> None:
    """SPHINX's `llama_ens5p2`: 291, and four times 32 + 1 + 64 + 2."""
    tokens, _, kinds = image_slots("vectors", 0, [32 + 257, *[32 + 1 + 64] * 4], {})
    assert len(tokens) == 291 + 4 * 99
    assert [i for i, kind in enumerate(kinds) if kind == B] == [0, 291, 390, 489, 588]


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"image_boundary: found 'both', expected one of none, tokens, vectors"):
        image_slots("both", 0, [1], {})  # pyright: ignore
    with pytest.raises(ValueError, match="image_boundary: found no token <im_end> in the tokenizer, expected one"):
        image_slots("tokens", 0, [1], {"<im_start>": 7})
