"""A mixture whose towers are cut over two ranks, one of them trained."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from lightning_mllm.training.parallelize import ParallelPlan, parallelize
from lightning_mllm.training.sharding import full_tensor
from lightning_mllm.vision.mixture import TINY_MIXTURE
from tests.distributed.ranks import on_two_ranks
from tests.vision.towers import images, shaken

TRAINED = "groups.1.1."


def built() -> nn.Module:
    torch.manual_seed(1)
    net = shaken(TINY_MIXTURE.build()).eval()
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name.startswith(TRAINED))
    return net


def results(net: nn.Module, seen: Tensor) -> list[Tensor]:
    """What every group gives, and a gradient in every block of the trained tower."""
    out = net(seen)
    torch.stack([each.square().mean() for each in out]).sum().backward()
    gradients = [p.grad for name, p in net.named_parameters() if name.startswith(TRAINED) and p.ndim > 1]
    assert all(gradient is not None for gradient in gradients)
    return [
        *(each.detach() for each in out),
        *(full_tensor(gradient) for gradient in gradients if gradient is not None),
    ]


def test_a_mixture_on_two_ranks() -> None:
    seen = images(16)

    def work(rank: int) -> list[Tensor]:
        dist.init_process_group("gloo")
        net = built()
        parallelize(net, {"": TINY_MIXTURE.blocks(net)}, ParallelPlan(), init_device_mesh("cpu", (2,)))
        return results(net, seen)

    expected = results(built(), seen)
    for found in on_two_ranks(work):
        assert len(found) == len(expected) > 20
        for ours, one in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, one, atol=1e-6, rtol=1e-5)
