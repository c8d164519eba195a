"""A batch on its way out of a worker: its small tensors in one, since each tensor that is sent costs a connection.

torch sends a tensor's memory as a file descriptor, for which the receiver opens a socket to the worker and both prove
who they are: 0.3 ms of the main process and 1 ms of waiting, a dozen times a batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from torch import Tensor

from lightning_mllm.contracts import Batch

SMALL = 1 << 16
"""Bytes up to which a tensor is sent with others; the pixels of a batch are not kept with its tokens."""
ALIGNED = 16
"""Bytes that a tensor begins at a multiple of."""
HOLE = torch.empty(0)
"""What stands in the place of a small tensor; it has no memory to be sent."""


@dataclass(frozen=True)
class SentBatch:
    """A batch whose small tensors are in one.

    Args:
        batch: with a hole in the place of each.
        buffer: the bytes of all.
        kinds: dtype and shape of each, in their order.
    """

    batch: Batch
    buffer: UInt8[Tensor, " N"]
    kinds: tuple[tuple[torch.dtype, tuple[int, ...]], ...]

    @classmethod
    def of(cls, batch: Batch) -> SentBatch:
        small = list[Tensor]()

        def take(tensor: Tensor) -> Tensor:
            if tensor.nbytes > SMALL:
                return tensor
            small.append(tensor)
            return HOLE

        holes = batch.map(take)
        buffer = torch.zeros(sum(_room(tensor.nbytes) for tensor in small), dtype=torch.uint8)
        begin = 0
        for tensor in small:
            buffer[begin : begin + tensor.nbytes] = tensor.contiguous().flatten().view(torch.uint8)
            begin += _room(tensor.nbytes)
        return cls(holes, buffer, tuple((tensor.dtype, tuple(tensor.shape)) for tensor in small))

    def received(self) -> Batch:
        """The batch as it was; its small tensors share their memory."""
        small = self._small()
        return self.batch.map(lambda tensor: next(small) if tensor.nbytes == 0 else tensor)

    def _small(self) -> Iterator[Tensor]:
        begin = 0
        for dtype, shape in self.kinds:
            size = dtype.itemsize * torch.Size(shape).numel()
            yield self.buffer[begin : begin + size].view(dtype).view(shape)
            begin += _room(size)

    def pin_memory(self) -> SentBatch:
        """The same in page-locked memory; torch's DataLoader calls it."""
        pinned = self.batch.map(lambda tensor: tensor.pin_memory() if tensor.nbytes else tensor)
        return SentBatch(pinned, self.buffer.pin_memory(), self.kinds)


def _room(size: int) -> int:
    return -(-size // ALIGNED) * ALIGNED
