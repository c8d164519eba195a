"""The dtype and the devices of a net in use."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import dispatch_model, infer_auto_device_map
from accelerate.utils import get_balanced_memory

from lightning_mllm.training.module import MultimodalModule


def floating_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """A floating dtype by its name in torch.

    Raises:
        ValueError: It is none.
    """
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is not None and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise ValueError(f"dtype: found {dtype!r}, expected a floating dtype of torch such as 'bfloat16'")
    return found


def cast_parameters(module: MultimodalModule, dtype: torch.dtype) -> MultimodalModule:
    """The net with its parameters in `dtype`.

    Buffers stay as they are, which `module.to(dtype)` would round too: the frequencies of rotary embeddings, in
    bfloat16, turn a query at position 500 by up to half a radian too far.
    """
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.data = parameter.data.to(dtype)
    return module


def dispatch_to_devices(module: MultimodalModule) -> MultimodalModule:
    """A built net, its blocks distributed over the accelerators of this machine; what does not fit is on the CPU.

    Without an accelerator the net stays on the CPU. Batches are moved to the first accelerator, and hooks of accelerate
    move the inputs of a block to the block's device.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return module
    net: Any = module.net
    blocks = (block for name, spec in module.components.items() for block in spec.blocks(net.get_submodule(name)))
    unsplit = sorted({type(block).__name__ for block in blocks})
    memory = get_balanced_memory(net, no_split_module_classes=unsplit)
    device_map = infer_auto_device_map(net, max_memory=memory, no_split_module_classes=unsplit)
    devices = set(device_map.values())
    if len(devices) == 1:
        (only,) = devices
        return module.to("cpu" if only == "cpu" else f"{accelerator.type}:{only}")
    dispatch_model(net, device_map)
    # The device of batches; `module.to` would move the blocks.
    module._device = torch.device(accelerator.type, min(each for each in devices if isinstance(each, int)))
    return module
