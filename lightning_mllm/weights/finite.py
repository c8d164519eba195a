"""Whether tensors hold numbers alone: no NaN and no infinity."""

from __future__ import annotations

import torch
from torch import Tensor

EXACT = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Dtypes whose smallest and largest value torch finds in one pass, at the speed of memory."""


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite; whole numbers never are. Waits for the tensor's device."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    # NaN goes before all other values, in both.
    low, high = torch.aminmax(tensor.detach() if tensor.dtype in EXACT else tensor.detach().float())
    return bool(torch.isfinite(low) & torch.isfinite(high))


def refuse_non_finite(name: str, tensor: Tensor) -> None:
    """Refuses a tensor with a value that is none.

    Raises:
        ValueError: Naming it.
    """
    if not is_finite(tensor):
        values = tensor.detach().flatten()
        bad = values[~values.isfinite()]
        raise ValueError(
            f"{name}: found {float(bad[0])} in {len(bad)} of {values.numel()} values, expected finite numbers"
        )
