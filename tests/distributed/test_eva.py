"""A frozen tower with weights of two dtypes, cut over two ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from lightning_mllm.training.parallelize import ParallelPlan, parallelize
from lightning_mllm.vision.eva import EvaTower
from tests.distributed.ranks import on_two_ranks
from tests.vision.evas import TINY, tower


def test_a_tower_of_16_bits_on_two_ranks() -> None:
    def built() -> torch.nn.Module:
        torch.manual_seed(1)
        return tower(dtype="bfloat16").requires_grad_(False)

    images = torch.randint(0, 256, (2, 3, 12, 12), dtype=torch.uint8)

    def work(rank: int) -> Tensor:
        dist.init_process_group("gloo")
        net = built()
        parallelize(net, {"": EvaTower(**TINY).blocks(net)}, ParallelPlan(), init_device_mesh("cpu", (2,)))
        return net(images)

    expected = built()(images)
    assert all(torch.equal(found, expected) for found in on_two_ranks(work))
