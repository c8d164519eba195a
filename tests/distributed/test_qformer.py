"""A Q-Former cut over two ranks goes through its four passes in one forward, as whole ones do."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from lightning_mllm.connectors.qformer_connector import QFormerConnector
from lightning_mllm.training.parallelize import ParallelPlan, parallelize
from lightning_mllm.training.sharding import full_tensor
from tests.connectors.qformers import SIZES, qformer, rows
from tests.distributed.ranks import on_two_ranks


class Passes(nn.Module):
    """What BLIP-2's first stage asks of a Q-Former."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.qformer: Any = qformer("full")

    def forward(self, visual: Tensor, tokens: Tensor, real: Tensor) -> Tensor:
        seen, kept = self.qformer.encode_images_with_cache(visual)
        read, written = self.qformer.encode_text(tokens, real), self.qformer.decode_text(tokens, real, kept)
        joined = self.qformer.encode_multimodal(visual, tokens, real)[:, : seen.shape[1]]
        other = torch.tensor([1, 0])
        shared = self.qformer.encode_instructed(
            [(kept.images, other), (visual, 1)], tokens.repeat(2, 1), real.repeat(2, 1)
        )
        return (
            seen.sin().sum()
            + 2 * read[:, 0].sin().sum()
            + 3 * written[real].sin().sum()
            + 4 * joined.sin().sum()
            + 5 * shared.sin().sum()
        )


def example(rank: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(rank)
    return torch.randn(2, 4, SIZES["in_width"]), *rows(5, 2 + rank)


def gradients(net: nn.Module) -> dict[str, Tensor]:
    return {name: full_tensor(p.grad) for name, p in net.named_parameters() if p.grad is not None}


def test_two_ranks_have_the_gradients_of_one_process() -> None:
    net = Passes()
    for rank in range(2):
        (net(*example(rank)) / 2).backward()
    expected = gradients(net)

    def work(rank: int) -> dict[str, Tensor]:
        dist.init_process_group("gloo")
        sharded = Passes()
        blocks = {"qformer": QFormerConnector(**SIZES).blocks(sharded.qformer)}
        parallelize(sharded, blocks, ParallelPlan(), init_device_mesh("cpu", (2,)))
        sharded(*example(rank)).backward()
        return gradients(sharded)

    for found in on_two_ranks(work):
        assert found.keys() == expected.keys() == dict(net.named_parameters()).keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-5, msg=name)
