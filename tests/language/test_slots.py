from __future__ import annotations

import pytest
import torch

from lightning_mllm.contracts import TokenKind
from lightning_mllm.language.slots import fill_slots

T, I, B, E = (int(kind) for kind in (TokenKind.TEXT, TokenKind.IMAGE, TokenKind.IMAGE_BEGIN, TokenKind.IMAGE_END))  # noqa: E741
KINDS = torch.tensor([[T, B, I, I, E, I, I], [I, I, T, T, T, T, T]], dtype=torch.uint8)


def test_slots_are_filled_in_reading_order_and_text_stays() -> None:
    embeds = torch.randn(2, 7, 3, requires_grad=True)
    visual = torch.randn(3, 2, 3, requires_grad=True)
    placed = fill_slots(embeds, KINDS, visual, ["a", "b"])
    assert torch.equal(placed[0, 2:4], visual[0]) and torch.equal(placed[0, 5:], visual[1])
    assert torch.equal(placed[1, :2], visual[2])
    rest = KINDS != I
    assert torch.equal(placed[rest], embeds[rest])
    placed.sum().backward()
    assert embeds.grad is not None and visual.grad is not None
    assert (visual.grad == 1).all() and torch.equal(embeds.grad[..., 0] == 1, rest)


def test_begin_and_end_may_be_slots_too() -> None:
    kinds = torch.tensor([[T, B, I, E, T, B, I, E]], dtype=torch.uint8)
    visual, embeds = torch.randn(2, 3, 4), torch.randn(1, 8, 4)
    slots = frozenset({TokenKind.IMAGE_BEGIN, TokenKind.IMAGE, TokenKind.IMAGE_END})
    placed = fill_slots(embeds, kinds, visual, ["a"], slots)
    assert torch.equal(placed[0, 1:4], visual[0]) and torch.equal(placed[0, 5:], visual[1])
    assert torch.equal(placed[0, [0, 4]], embeds[0, [0, 4]])
    with pytest.raises(ValueError, match="found 2 image slots for 6 visual vectors"):
        fill_slots(embeds, kinds, visual, ["a"])


def test_no_images_and_no_slots() -> None:
    embeds = torch.randn(1, 3, 4)
    assert torch.equal(fill_slots(embeds, torch.zeros(1, 3, dtype=torch.uint8), torch.zeros(0, 2, 4), ["a"]), embeds)


def test_dtypes_may_differ() -> None:
    placed = fill_slots(torch.zeros(2, 7, 3, dtype=torch.bfloat16), KINDS, torch.ones(3, 2, 3), ["a", "b"])
    assert placed.dtype == torch.bfloat16 and placed.sum() == 18


def test_both_numbers_and_the_sample_are_named() -> None:
    kinds = KINDS.clone()
    kinds[1, 2] = I
    with pytest.raises(ValueError, match=r"found 7 image slots for 6 visual vectors .* look at sample 'b'$"):
        fill_slots(torch.zeros(2, 7, 3), kinds, torch.zeros(3, 2, 3), ["a", "b"])
    # Where every row could be right, all are named.
    with pytest.raises(ValueError, match=r"found 6 image slots for 4 visual vectors .* look at sample 'a', 'b'$"):
        fill_slots(torch.zeros(2, 7, 3), KINDS, torch.zeros(2, 2, 3), ["a", "b"])
