"""Parameters spread over ranks: FSDP2 whose data-parallel size is the world size, and tensors in and out of it.

Names and values never depend on the number of ranks: checkpoints and stage weights hold tensors under plain names, so
a stage started on eight ranks can be resumed on one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
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

# Older torch finds the tensors that FSDP2 hooks for the backward pass by flattening what a module returns, and an
# unregistered class would hide the loss from it.
for _each in (Output, Term):
    pytree.register_dataclass(_each, field_names=[f.name for f in fields(_each)], drop_field_names=[])


def to_local(tensor: Tensor) -> Tensor:
    """This rank's shard of a tensor (sharing memory), or the tensor itself."""
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
    """Copies a full tensor into `target`, of which each rank takes its own shard without communication.

    Of a tensor that is mapped from a file, a rank reads its own rows only.

    Contract: `source` has the shape of `target`; dtype and device may differ.
    """
    assert target.shape == source.shape, (target.shape, source.shape)
    if isinstance(target, DTensor):
        shape, offset = compute_local_shape_and_global_offset(target.shape, target.device_mesh, target.placements)
        source = source[tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))]
    to_local(target).copy_(source)


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all ranks; works with NCCL on GPUs and gloo on CPUs.

    Checkpoints are those of DDP and of one device; each rank writes and reads the shards that it owns.
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
        with before_last_micro_batch(module.net, module.parallel):
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

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: str | None = None
    ) -> None:
        # By all ranks.
        self.checkpoint_io.save_checkpoint(checkpoint, self.broadcast(filepath), storage_options)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        # By all ranks, each its own shards.
        return self.checkpoint_io.load_checkpoint(checkpoint_path)
