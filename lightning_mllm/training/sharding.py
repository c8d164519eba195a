"""Parameters spread over ranks: FSDP2 whose data-parallel size is the world size, and tensors in and out of it.

Names and values never depend on the number of ranks: checkpoints and hand-over weights hold whole tensors under plain
names, so a stage started on eight ranks can be resumed on one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from datetime import timedelta
from typing import Any, Literal, TypeVar, cast

import torch
import torch.distributed as dist
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from lightning_mllm.contracts import Output, Term
from lightning_mllm.training.parallelize import before_last_micro_batch, sharding_mesh
from lightning_mllm.weights.safetensors_writer import HeldTensors

T = TypeVar("T")

# Older torch finds the tensors that FSDP2 hooks for the backward pass by flattening what a module returns, and an
# unregistered class would hide the loss from it.
for _each in (Output, Term):
    pytree.register_dataclass(_each, field_names=[f.name for f in fields(_each)], drop_field_names=[])


def to_local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor (sharing memory), or the tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor; all ranks must call this together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(like: Tensor, shard: Tensor) -> Tensor:
    """`shard` as this rank's shard of a tensor that is sharded as `like` is, or `shard` itself; shares its memory.

    Dtype and device may differ from those of `like`.
    """
    if not isinstance(like, DTensor):
        return shard
    meta = TensorMeta(like.shape, like.stride(), shard.dtype)
    return DTensor(shard, DTensorSpec(like.device_mesh, like.placements, tensor_meta=meta), requires_grad=False)


class GatheredTensors(HeldTensors):
    """Full tensors, of which each is gathered when it is asked for; all ranks ask for them together."""

    def pieces(self, name: str) -> Iterable[Tensor]:
        yield full_tensor(self.tensors[name].detach()).cpu()


@torch.no_grad()
def copy_into_shard(target: Tensor, source: Tensor) -> None:
    """Copies a full tensor into `target`, of which each rank takes its own part without communication.

    Contract: `source` has the shape of `target`; dtype and device may differ.
    """
    assert target.shape == source.shape, (target.shape, source.shape)
    if isinstance(target, DTensor):
        shape, offset = compute_local_shape_and_global_offset(target.shape, target.device_mesh, target.placements)
        source = source[tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))]
    to_local(target).copy_(source)


def rank_and_world() -> tuple[int, int]:
    """This process's number, and how many there are."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def cpu_group() -> dist.ProcessGroup | None:
    """A new process group for CPU tensors, whose collectives meet no others; all ranks make it together.

    None where there is one process.
    """
    if rank_and_world()[1] == 1:
        return None
    return cast(dist.ProcessGroup, dist.new_group(backend="gloo"))


def from_first_rank(value: T) -> T:
    """The plain value that rank 0 gives; all ranks call it together."""
    if rank_and_world()[1] == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


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
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return _gathered(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # A copy: autograd may still need what it handed over.
        everyone = all_reduce(gradients[0].clone(memory_format=torch.contiguous_format))
        rank, world = rank_and_world()
        return everyone.chunk(world)[rank]


def all_reduce(tensor: Tensor, how: Literal["sum", "max"] = "sum") -> Tensor:
    """In place over all ranks; a single process changes nothing."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.SUM if how == "sum" else dist.ReduceOp.MAX)
    return tensor


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all ranks; works with NCCL on GPUs and gloo on CPUs.

    Checkpoints are those of DDP and of one device; each rank hands over the shards that it owns.
    """

    mesh: DeviceMesh
    """Over which parameters are sharded, once processes are set up."""

    def __init__(self, process_group_backend: str | None = None, timeout_seconds: float = 1800.0) -> None:
        super().__init__(
            save_distributed_checkpoint=False,
            process_group_backend=process_group_backend,
            timeout=timedelta(seconds=timeout_seconds),
        )

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def setup_environment(self) -> None:
        # Lightning's "auto" is one data-parallel rank a node, the rest tensor-parallel.
        self._data_parallel_size = self.num_nodes * self.num_processes
        self._tensor_parallel_size = 1
        super().setup_environment()
        module = cast(Any, self.lightning_module)
        self.mesh = sharding_mesh(self.root_device.type, self.world_size, self.num_processes, module.parallel.shard)

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """All micro-batches of an optimizer step but the last; Lightning's own knows DDP only."""
        module = cast(Any, self.lightning_module)
        with before_last_micro_batch(module, module.parallel):
            yield

    def lightning_module_state_dict(self) -> dict[str, Tensor]:
        return cast(Any, self.lightning_module).checkpoint_tensors()

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Nothing: the module has read its shards (`checkpoints.restore`)."""

    def optimizer_state(self, optimizer: Optimizer | LightningOptimizer) -> dict[str, Any]:
        inner = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        return inner.state_dict()

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(state)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        # By all ranks.
        self.checkpoint_io.save_checkpoint(checkpoint, self.broadcast(filepath), storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        # By all ranks, each its own shards.
        return self.checkpoint_io.load_checkpoint(checkpoint_path)
