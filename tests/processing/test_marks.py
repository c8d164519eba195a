from __future__ import annotations

import pytest
import torch

from lightning_mllm.contracts import IGNORE, TokenKind
from lightning_mllm.language.slots import fill_slots
from lightning_mllm.processing.chat_template import mark_pieces
from lightning_mllm.processing.marks import MARKS, Boundary, Mark, mark_row
from tests.processing.test_processor import RED, processor, sample

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
def test_an_image_in_full(image_boundary: Boundary, views: int, tokens: list[int], kinds: list[int]) -> None:
    row = mark_row("<image>", image_boundary, [2] * views, WORDS, spare=3)
    assert row == (tokens, [IGNORE] * len(tokens), kinds)


@pytest.mark.parametrize(
    ("vectors", "views", "count"), [(1225, 1, 1227), (289, 1, 291), (289, 5, 1455), (289, 10, 2910)]
)
def test_published_lengths(vectors: int, views: int, count: int) -> None:
    """CogVLM at 490 pixels; SPHINX, its 1k and its 2k."""
    tokens, _, kinds = mark_row("<image>", "vectors", [vectors] * views, {}, 0)
    assert len(tokens) == len(kinds) == count


def test_parts_that_are_shown_with_fewer_vectors() -> None:
    """SPHINX's `llama_ens5p2`: 291, and four times 32 + 1 + 64 + 2."""
    tokens, _, kinds = mark_row("<image>", "vectors", [32 + 257, *[32 + 1 + 64] * 4], {}, 0)
    assert len(tokens) == 291 + 4 * 99
    assert [i for i, kind in enumerate(kinds) if kind == B] == [0, 291, 390, 489, 588]


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"image_boundary: found 'both', expected one of none, tokens, vectors"):
        mark_row("<image>", "both", [1], {}, 0)  # pyright: ignore
    with pytest.raises(ValueError, match="image_boundary: found no token <im_end> in the tokenizer, expected one"):
        mark_row("<image>", "tokens", [1], {"<im_start>": 7}, 0)


def test_a_second_mark_is_one_row_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the text of a turn to the embeddings of a net that fills its slots."""
    region = 4
    monkeypatch.setitem(MARKS, "<region>", Mark(kind=region, slots=lambda vectors: (2,)))
    assert [(piece.text, piece.mark) for piece in mark_pieces("a<region><image>b")] == [
        ("a", False),
        ("<region>", True),
        ("", False),
        ("<image>", True),
        ("b", False),
    ]
    used = processor(image_boundary="vectors")
    both = sample("<image>\nthis <region> or <region>?", "a", images=(RED,))
    batch = used.collate([used.encode(both), used.encode(sample("no", "<region>"))])
    kinds = batch.kinds[0].tolist()
    assert (kinds.count(region), kinds.count(I), kinds.count(B)) == (4, 3, 1) and not batch.kinds[1].any()
    (asked,) = (piece for piece in used.chat.render(both.turns) if piece.text.endswith("this "))
    assert asked.text and batch.visual_counts == (3,)
    given = {I: torch.ones(3, 2), region: torch.arange(8.0).view(4, 2), B: torch.zeros(1, 2), E: torch.zeros(1, 2)}
    filled = fill_slots(torch.zeros(*batch.kinds.shape, 2), batch, {**given})  # pyright: ignore[reportArgumentType]
    assert torch.equal(filled[0][batch.kinds[0] == region], given[region])
    with pytest.raises(ValueError, match=r"found slots of the kinds \[4\], expected \[1\], which the net fills"):
        fill_slots(filled, batch, {TokenKind.IMAGE: given[I]})


def test_a_mark_may_stand_for_items_of_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MARKS, "<word>", Mark(kind=5, slots=lambda vectors: (1,), items="references"))
    with pytest.raises(ValueError, match="found 1 <word> marks for 0 references, expected as many"):
        processor().encode(sample("<word>?", "a"))
