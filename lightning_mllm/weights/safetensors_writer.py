"""A file of safetensors written piece by piece: what the package's own writer wants all at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from lightning_mllm.weights.finite import refuse_non_finite

Layout = dict[str, tuple[torch.dtype, torch.Size]]
"""Name -> dtype and shape."""


@runtime_checkable
class TensorStream(Protocol):
    """Tensors of which dtypes and shapes are known beforehand, and values when they are asked for."""

    def layout(self) -> Layout: ...

    def pieces(self, name: str) -> Iterable[Tensor]:
        """The tensor called `name`, on the CPU, in pieces that follow one another."""
        ...


class HeldTensors:
    """The stream of tensors that are in memory."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors

    def layout(self) -> Layout:
        return {name: (tensor.dtype, tensor.shape) for name, tensor in self.tensors.items()}

    def pieces(self, name: str) -> Iterable[Tensor]:
        yield self.tensors[name].detach().cpu()


CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""How a header calls a dtype (github.com/huggingface/safetensors, README, "Format")."""


def size(each: tuple[torch.dtype, torch.Size]) -> int:
    """Bytes of a tensor."""
    return each[1].numel() * each[0].itemsize


def writing_order(layout: Layout) -> list[str]:
    """Names in the order of a file: tensors of larger numbers first, so that each starts where its numbers may."""
    return sorted(layout, key=lambda name: -layout[name][0].itemsize)


def write_safetensors(path: Path, layout: Layout, read: Callable[[str], Iterable[Tensor]]) -> None:
    """Writes the header's length, the header, and then the tensors without gaps.

    Args:
        read: Gives the tensor of a name, on the CPU, in pieces that follow one another; called once for each.

    Raises:
        ValueError: A value is NaN or infinite.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    names, end = writing_order(layout), 0
    for name in names:
        (dtype, shape), start = layout[name], end
        end += size(layout[name])
        header[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            left = size(layout[name])
            for piece in read(name):
                assert piece.dtype == layout[name][0], (name, piece.dtype)
                refuse_non_finite(name, piece)
                stream.write(piece.contiguous().reshape(-1).view(torch.uint8).numpy().data)
                left -= piece.nbytes
            assert left == 0, (name, left)
