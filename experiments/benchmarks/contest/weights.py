"""The weights that all contenders begin with: ours, and the same as a folder of transformers."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from contest.hf_llava import config_of
from contest.ours import llava
from contest.workload import Workload
from lightning_mllm.interop.format import TrainedNet
from lightning_mllm.interop.hf_llava import write


def write_weights(workload: Workload, folder: Path) -> None:
    """`ours.safetensors` and `hf/` in `folder`."""
    torch.manual_seed(0)
    module = llava(workload)
    module.configure_model()
    save_file(
        {name: tensor.contiguous() for name, tensor in module.net.state_dict().items()}, folder / "ours.safetensors"
    )
    given = write(TrainedNet(net=module.net, components=module.components, processor=module.processor, decoding={}))
    config_of(workload).save_pretrained(folder / "hf")
    tensors = {name: tensor.contiguous().clone() for name, tensor in given.tensors()}
    save_file(tensors, folder / "hf/model.safetensors", metadata={"format": "pt"})
