from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_mllm.contracts import Batch, TokenKind
from lightning_mllm.language.slots import fill_slots
from tests.language.batches import batch_of

T, I, B, E = (int(kind) for kind in (TokenKind.TEXT, TokenKind.IMAGE, TokenKind.IMAGE_BEGIN, TokenKind.IMAGE_END))  # noqa: E741
KINDS = torch.tensor([[T, B, I, I, E, I, I], [I, I, T, T, T, T, T]], dtype=torch.uint8)


def batch(kinds: Tensor = KINDS, num_images: int = 3) -> Batch:
    ones = torch.ones_like(kinds).long()
    return batch_of(ones, ones.cumsum(1) - 1, kinds, num_images=num_images)


def test_slots_are_filled_in_reading_order_and_text_stays() -> None:
    embeds = torch.randn(2, 7, 3, requires_grad=True)
    visual = torch.randn(6, 3, requires_grad=True)
    placed = fill_slots(embeds, batch(), {TokenKind.IMAGE: visual})
    assert torch.equal(placed[0, 2:4], visual[:2]) and torch.equal(placed[0, 5:], visual[2:4])
    assert torch.equal(placed[1, :2], visual[4:])
    rest = KINDS != I
    assert torch.equal(placed[rest], embeds[rest])
    placed.sum().backward()
    assert embeds.grad is not None and visual.grad is not None
    assert (visual.grad == 1).all() and torch.equal(embeds.grad[..., 0] == 1, rest)


def test_images_may_have_any_number_of_vectors() -> None:
    kinds = torch.tensor([[T, I, I, I, T, I], [I, T, T, T, T, T]], dtype=torch.uint8)
    visual = [torch.randn(count, 4) for count in (3, 1, 1)]
    placed = fill_slots(torch.zeros(2, 6, 4), batch(kinds), {TokenKind.IMAGE: torch.cat(visual)})
    assert torch.equal(placed[0, 1:4], visual[0]) and torch.equal(placed[0, 5:], visual[1])
    assert torch.equal(placed[1, :1], visual[2]) and not placed[kinds == T].any()


def test_begin_and_end_may_be_slots_too() -> None:
    kinds = torch.tensor([[T, B, I, E, T, B, I, E]], dtype=torch.uint8)
    given = {kind: torch.randn(2, 4) for kind in (TokenKind.IMAGE_BEGIN, TokenKind.IMAGE, TokenKind.IMAGE_END)}
    embeds = torch.randn(1, 8, 4)
    placed = fill_slots(embeds, batch(kinds), given)
    for image, start in enumerate((1, 5)):
        assert torch.equal(placed[0, start : start + 3], torch.stack([each[image] for each in given.values()]))
    assert torch.equal(placed[0, [0, 4]], embeds[0, [0, 4]])
    # Where a net has no such vectors, they are words.
    alone = fill_slots(embeds, batch(kinds), {TokenKind.IMAGE: given[TokenKind.IMAGE]})
    assert torch.equal(alone[0, [1, 3]], embeds[0, [1, 3]])


def test_no_slots_and_the_blank_image() -> None:
    embeds, blank = torch.randn(1, 3, 4), torch.randn(5, 4, requires_grad=True)
    nothing = batch(torch.zeros(1, 3, dtype=torch.uint8), num_images=0)
    placed = fill_slots(embeds, nothing, {TokenKind.IMAGE: blank})
    assert torch.equal(placed, embeds)
    placed.sum().backward()
    assert blank.grad is not None and not blank.grad.any()


def test_dtypes_may_differ() -> None:
    placed = fill_slots(torch.zeros(2, 7, 3, dtype=torch.bfloat16), batch(), {TokenKind.IMAGE: torch.ones(6, 3)})
    assert placed.dtype == torch.bfloat16 and placed.sum() == 18


def test_both_numbers_and_the_samples_are_named() -> None:
    sentence = r"found 6 IMAGE slots for 4 vectors of 3 images, expected as many; look at samples 'row 0', 'row 1'$"
    with pytest.raises(ValueError, match=sentence):
        fill_slots(torch.zeros(2, 7, 3), batch(), {TokenKind.IMAGE: torch.zeros(4, 3)})


def test_slots_that_nothing_fills_are_refused() -> None:
    kinds = KINDS.clone()
    kinds[0, 0] = 9
    with pytest.raises(
        ValueError, match=r"found slots of the kinds \[9\], expected \[1\], which the net fills; look at"
    ):
        fill_slots(torch.zeros(2, 7, 3), batch(kinds), {TokenKind.IMAGE: torch.zeros(6, 3)})
