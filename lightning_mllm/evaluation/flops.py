"""Floating point operations of training: what a net needs, counted or estimated; what a device promises and gives."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

DENSE_BF16 = {
    "B200": 2250e12,
    "H200 NVL": 836e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 836e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
}
"""Part of an accelerator's name, the longer ones first -> operations a second of its data sheet: bfloat16, without
sparsity."""


def training_flops(tokens: float, parameters: float, trained: float) -> float:
    """An estimate: 2 a parameter and token for the forward pass, 2 for the gradient of its input, and 2 for that of a
    trained weight. Products of attention are left out; every parameter is taken to read every token, and gradients to
    pass through all of them.

    Args:
        tokens: Read by the language model, image slots included.
        parameters: Of the whole net.
        trained: Those that are trained.
    """
    return tokens * (4 * parameters + 2 * trained)


def peak_flops(accelerator: str) -> float | None:
    """Operations a second that the data sheet promises; None for one that is not listed.

    Args:
        accelerator: As `torch.cuda.get_device_name` calls it, such as "NVIDIA H100 80GB HBM3".
    """
    words = accelerator.replace("-", " ").split()
    return next((peak for name, peak in DENSE_BF16.items() if set(name.split()) <= set(words)), None)


def measured_peak(device: torch.device, dtype: torch.dtype, seconds: float = 0.15) -> float:
    """Operations a second of this process in the best of some square matrix products; waits for the device.

    Args:
        dtype: Of the matrices.
        seconds: How long, about.
    """
    side = 8192 if device.type == "cuda" else 512
    own = torch.Generator(device).manual_seed(0)  # training's stays as it is
    a, b = (torch.randn(side, side, device=device, generator=own).to(dtype) for _ in range(2))
    synchronise = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    torch.mm(a, b)  # the first one chooses a kernel
    synchronise()
    best, end = float("inf"), time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        torch.mm(a, b)
        synchronise()
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best


ATTENTION = ("_scaled_dot_product", "_varlen_attn", "_flash_attention", "_efficient_attention", "flex_attention")


class CountedProducts(TorchDispatchMode):
    """While it is entered, counts the operations of a forward pass and of the backward pass that it asks for.

    Products of matrices, convolutions and attention are counted as `torch.utils.flop_counter` does; a backward pass
    has as many for each factor that has a gradient, so a frozen weight has none and a part without a graph none at all.
    What checkpointed blocks compute again is not needed by the net, and is not counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0.0

    def __enter__(self) -> Self:
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)

    def __torch_dispatch__(
        self, func: OpOverload, types: Sequence[type], args: tuple = (), kwargs: dict[str, object] | None = None
    ) -> object:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        packet = func.overloadpacket
        if packet is torch.ops.aten._native_multi_head_attention:  # of towers in eval mode, without a graph
            rows, length, width = args[0].shape
            self.operations += 8 * rows * length * width**2 + 4 * rows * length**2 * width
        elif (formula := flop_registry.get(packet)) is not None and "backward" not in packet.__name__:
            forward = formula(*args, **kwargs, out_val=found)
            tensors = [each for each in args if isinstance(each, Tensor) and each.is_floating_point()]
            name = packet.__name__
            # A bias is no factor: it stands first in addmm, and last in a convolution.
            factors = tensors[-2:] if "mm" in name else tensors[:2]
            learned = sum(each.requires_grad for each in factors) if torch.is_grad_enabled() else 0
            if any(name.startswith(each) for each in ATTENTION):
                learned = 2 * any(each.requires_grad for each in tensors[:3])
            self.operations += forward * (1 + learned)
        return found
