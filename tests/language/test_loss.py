from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from lightning_mllm.contracts import IGNORE
from lightning_mllm.language.loss import next_token_loss


def case() -> tuple[Tensor, nn.Linear, Tensor]:
    labels = torch.tensor([[3, IGNORE, 4, 5, IGNORE], [IGNORE, 1, IGNORE, IGNORE, 2]])
    return torch.randn(2, 5, 8, requires_grad=True), nn.Linear(8, 7), labels


def test_it_is_the_cross_entropy_of_the_next_token() -> None:
    hidden, head, labels = case()
    loss, count = next_token_loss(hidden, head, labels, torch.ones(2, 5).long())
    expected = F.cross_entropy(head(hidden)[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE)
    assert_close(loss, expected)
    # The first label of a row is never predicted.
    assert count == 4
    inputs = (hidden, head.weight)
    for mine, other in zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs), strict=True):
        assert_close(mine, other)


def test_only_supervised_positions_pass_through_the_head() -> None:
    hidden, head, labels = case()
    shapes = []

    def spied(selected: Tensor) -> Tensor:
        shapes.append(selected.shape)
        return head(selected)

    next_token_loss(hidden, spied, labels, torch.ones(2, 5).long())
    assert shapes == [(4, 8)]


def test_a_segment_does_not_predict_the_next_one() -> None:
    hidden, head, labels = case()
    segments = torch.tensor([[1, 1, 2, 2, 2], [1, 1, 1, 1, 1]])
    loss, count = next_token_loss(hidden, head, labels, segments)
    cut = labels.clone()
    cut[0, 2] = IGNORE
    expected, fewer = next_token_loss(hidden, head, cut, torch.ones(2, 5).long())
    assert count == fewer == 3 and torch.equal(loss, expected)


def test_nothing_to_learn_is_zero_with_a_gradient() -> None:
    hidden, head, labels = case()
    loss, count = next_token_loss(hidden, head, torch.full_like(labels, IGNORE), torch.ones(2, 5).long())
    assert loss == 0 and count == 0
    loss.backward()
    assert hidden.grad is not None and head.weight.grad is not None
    assert not hidden.grad.any() and not head.weight.grad.any()


def test_it_is_computed_in_float32() -> None:
    hidden, head, labels = case()
    loss, _ = next_token_loss(hidden.bfloat16(), head.bfloat16(), labels, torch.ones(2, 5).long())
    assert loss.dtype == torch.float32
