"""Tensors of all ranks; a single process is alone with its own.

Legend: B rows of this rank.
"""

from __future__ import annotations

from typing import Literal, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx

T = TypeVar("T")


class AgreedError(ValueError):
    """All ranks raise it at the same place, because of something that all of them know."""


def rank_and_world() -> tuple[int, int]:
    """This process's number, and how many there are."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def all_reduce(tensor: Tensor, how: Literal["sum", "max"] = "sum") -> Tensor:
    """In place over all ranks; a single process changes nothing."""
    if rank_and_world()[1] > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.SUM if how == "sum" else dist.ReduceOp.MAX)
    return tensor


def gather(tensor: Tensor, *, gradient: bool) -> Tensor:
    """The rows of all ranks in the order of ranks; every rank must give a tensor of the same shape.

    Args:
        gradient: Whether what the ranks do with this rank's rows comes back to it, summed; without it there is none.
    """
    _, world = rank_and_world()
    if world == 1:
        return tensor if gradient else tensor.detach()
    return _Gather.apply(tensor) if gradient else _gathered(tensor.detach())  # pyright: ignore


def _gathered(tensor: Tensor) -> Tensor:
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, tensor: Tensor) -> Tensor:
        return _gathered(tensor)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> Tensor:
        # A copy: autograd may still need what it handed over.
        everyone = all_reduce(gradients[0].clone(memory_format=torch.contiguous_format))
        rank, world = rank_and_world()
        return everyone.chunk(world)[rank]


def cpu_group() -> dist.ProcessGroup | None:
    """A new process group for CPU tensors, whose collectives meet no others; all ranks make it together.

    None where there is one process.
    """
    if rank_and_world()[1] == 1:
        return None
    return cast(dist.ProcessGroup, dist.new_group(backend="gloo"))


def gather_objects(value: T) -> list[T]:
    """The plain values of all ranks, in their order; all ranks call it together."""
    world = rank_and_world()[1]
    if world == 1:
        return [value]
    values: list[T | None] = [None] * world
    dist.all_gather_object(values, value)
    return cast("list[T]", values)


def from_first_rank(value: T) -> T:
    """The plain value that rank 0 gives; all ranks call it together."""
    if rank_and_world()[1] == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]
