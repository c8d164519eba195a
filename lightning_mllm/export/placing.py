"""Where a net lies when it is used, and in which numbers."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import dispatch_model, infer_auto_device_map
from accelerate.utils import get_balanced_memory

from lightning_mllm.training.module import MultimodalModule


def named_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """A floating dtype by its name in torch.

    Raises:
        ValueError: It is none.
    """
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is not None and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise ValueError(f"dtype: found {dtype!r}, expected a floating dtype of torch such as 'bfloat16'")
    return found


def dispatched(module: MultimodalModule) -> MultimodalModule:
    """A built net, its blocks laid on what accelerators there are, and in memory what does not fit.

    Without an accelerator the net stays on the CPU. Batches begin on the first accelerator, and hooks of accelerate
    move what a block reads to where it lies.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return module
    net: Any = module.net
    blocks = (block for name, spec in module.components.items() for block in spec.blocks(net.get_submodule(name)))
    whole = sorted({type(block).__name__ for block in blocks})
    room = get_balanced_memory(net, no_split_module_classes=whole)
    lies = infer_auto_device_map(net, max_memory=room, no_split_module_classes=whole)
    places = set(lies.values())
    if len(places) == 1:
        (only,) = places
        return module.to("cpu" if only == "cpu" else f"{accelerator.type}:{only}")
    dispatch_model(net, lies)
    # Where batches begin; `to` would move what is laid out.
    module._device = torch.device(accelerator.type, min(place for place in places if isinstance(place, int)))
    return module
