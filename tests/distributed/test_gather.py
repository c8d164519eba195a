"""Rows of all ranks, and gradients back to whose they are."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_mllm.collectives import gather
from tests.distributed.ranks import on_two_ranks


def rows(rank: int) -> Tensor:
    return torch.arange(6.0).view(2, 3) + 10 * rank


def weight(rank: int) -> Tensor:
    """How `rank` uses the rows of both."""
    return torch.arange(12.0).view(4, 3) + 100 * rank


def test_rows_in_their_place_and_gradients_summed_to_their_owner() -> None:
    def work(rank: int) -> dict[str, Tensor]:
        dist.init_process_group("gloo")
        own = rows(rank).requires_grad_()
        # A sum hands one and the same gradient to both of its terms, to the later one first.
        beside = torch.zeros(4, 3, requires_grad=True)
        earlier = beside.clone()
        found = gather(own, gradient=True)
        ((found + earlier) * weight(rank)).sum().backward()
        once = own.grad
        assert once is not None and beside.grad is not None
        assert torch.equal(beside.grad, weight(rank))
        turned = gather(own.detach().t().contiguous().t().requires_grad_(), gradient=False)
        truth = gather(own.detach() > 3, gradient=False)
        assert not turned.requires_grad and not gather(own, gradient=False).requires_grad
        return {"rows": found.detach(), "gradient": once, "turned": turned, "truth": truth}

    both = torch.cat([rows(0), rows(1)])
    used = weight(0) + weight(1)
    for rank, found in enumerate(on_two_ranks(work)):
        assert torch.equal(found["rows"], both) and torch.equal(found["turned"], both)
        assert torch.equal(found["truth"], both > 3)
        assert torch.equal(found["gradient"], used[2 * rank : 2 * rank + 2])


def test_one_process_gathers_itself() -> None:
    own = rows(0).requires_grad_()
    assert gather(own, gradient=True) is own
    alone = gather(own, gradient=False)
    assert torch.equal(alone, own) and not alone.requires_grad
