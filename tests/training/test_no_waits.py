"""No training step asks the device: nothing that a CUDA host would wait for, in any architecture.

The net and its batch are on the `meta` device, which has no values to tell, so that what reads them (`item`, `tolist`,
`nonzero`, a boolean index, a copy to the host) raises of itself. A dispatch mode refuses what `meta` lets through and
CUDA waits for (`torch.cuda.set_sync_debug_mode`). Between two optimizer steps the host may wait, as it does once a step
for the logged means: only what each micro-batch does is looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_mllm.architectures.blip2 import Blip2
from lightning_mllm.architectures.blip2_representation import Blip2Representation
from lightning_mllm.architectures.cogvlm import CogVLM
from lightning_mllm.architectures.llava import LLaVA
from lightning_mllm.architectures.sphinx import Sphinx
from lightning_mllm.contracts import Batch, Sample, Turn
from lightning_mllm.language.seq2seq import TINY_T5
from lightning_mllm.training.module import MultimodalModule
from lightning_mllm.training.stage import StageSettings
from tests.architectures.blip2s import INSTRUCTED, OPT
from tests.architectures.samples import ONE, OTHER, TEXT, TWO, batch_of, packed

aten = torch.ops.aten
WAITS = {
    aten._local_scalar_dense, aten.bincount, aten.equal, aten.histc, aten.is_nonzero, aten.masked_select,
    aten.multinomial, aten.nonzero, aten.repeat_interleave, aten.unique_consecutive, aten._unique2, aten.unique_dim,
}  # fmt: skip


class NoWaits(TorchDispatchMode):
    """Refuses operations that read the values of tensors on a device, and copies to or from it that block."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        found = func(*args, **kwargs)
        packet = func.overloadpacket
        if any(each.is_meta for each in given):
            assert packet not in WAITS, func
        if packet in (aten.index, aten.index_put, aten.index_put_):
            assert not any(each.dtype == torch.bool for each in tree_leaves(args[1]) if isinstance(each, Tensor)), func
        if packet in (aten._to_copy, aten.copy_):
            # A number is filled in, which copies nothing.
            moved = [each for each in [*given, *tree_leaves(found)] if each.dim() or packet is aten._to_copy]
            blocks = not (kwargs.get("non_blocking") or (packet is aten.copy_ and args[2:] == (True,)))
            assert not blocks or len({each.is_meta for each in moved}) == 1, f"{func}, blocking"
        return found


CAPTIONS = [
    Sample(id=str(i), turns=(Turn(role="user", text="<image>"), Turn(role="assistant", text=text)), images=each.images)
    for i, (text, each) in enumerate((("a cube", ONE), ("a red sphere", OTHER), ("two of them", ONE)))
]
QUESTIONS = [ONE, TEXT, TWO, OTHER]
T5: dict[str, Any] = {"language": TINY_T5, "chat": "blip2_t5"}


def padded(module: MultimodalModule, *samples: Sample) -> Batch:
    return batch_of(module, *samples)


NETS: dict[str, tuple[Callable[..., MultimodalModule], str, dict[str, Any], list[Sample]]] = {
    "llava": (LLaVA.tiny, "instruct", {}, QUESTIONS),
    "llava, opt": (LLaVA.tiny, "align", {"language": OPT}, QUESTIONS),
    "blip2, representation": (Blip2Representation.tiny, "representation", {}, CAPTIONS),
    "blip2, representation, soft targets": (
        Blip2Representation.tiny,
        "representation",
        {"soft_targets": True},
        CAPTIONS,
    ),
    "blip2, opt": (Blip2.tiny, "generative", {"language": OPT}, QUESTIONS),
    "blip2, t5": (Blip2.tiny, "generative", T5, QUESTIONS),
    "instructblip, llama": (Blip2.tiny, "instruct", INSTRUCTED, QUESTIONS),
    "instructblip, t5": (Blip2.tiny, "instruct", INSTRUCTED | T5, QUESTIONS),
    "sphinx": (Sphinx.tiny, "pretrain", {}, QUESTIONS),
    "cogvlm": (CogVLM.tiny, "chat", {}, QUESTIONS),
}
PACKED = [name for name, (_, _, _, samples) in NETS.items() if "t5" not in name and samples is QUESTIONS]


def trained(name: str) -> MultimodalModule:
    tiny, stage, settings, _ = NETS[name]
    module = tiny(**settings, stage=StageSettings(name=stage))
    module.configure_model()
    module.to("meta")
    module._trainer = SimpleNamespace(accumulate_grad_batches=1, world_size=1, strategy=None)  # pyright: ignore
    return module


def step(module: MultimodalModule, batch: Batch) -> None:
    """What one micro-batch does: its copy to the device, forward, backward."""
    known = batch.noted(step=(batch.noted(images=batch.images[:0]),))
    with NoWaits():
        module.training_step(known.to("meta", non_blocking=True), 0).backward()
    for parameter, tensor in module.net.named_parameters():
        assert tensor.requires_grad == (parameter in module.trained)


@pytest.mark.parametrize("name", NETS)
def test_a_step_of_padded_rows_asks_the_device_nothing(name: str) -> None:
    module = trained(name)
    step(module, padded(module, *NETS[name][3]))
    if NETS[name][3] is QUESTIONS:
        step(module, padded(module, TEXT))


@pytest.mark.parametrize("name", PACKED)
def test_a_step_of_packed_rows_asks_the_device_nothing(name: str) -> None:
    module = trained(name)
    step(module, packed(module, *QUESTIONS))


def value(tensor: Tensor) -> Any:
    return tensor.sum().item()


def rows(tensor: Tensor) -> Any:
    return tensor[tensor > 0]


def filled(tensor: Tensor) -> Any:
    tensor[tensor > 0] = torch.zeros(2, device="meta")


@pytest.mark.parametrize(
    "wait",
    [
        value, rows, filled, Tensor.tolist, Tensor.cpu, Tensor.nonzero, bool, torch.bincount, torch.unique,
        lambda tensor: torch.equal(tensor, tensor),
        lambda tensor: torch.multinomial(tensor.float(), 1),
        lambda tensor: torch.zeros(3).to("meta"),
        lambda tensor: tensor.copy_(torch.zeros(1)),
    ],
)  # fmt: skip
def test_what_waits_is_seen(wait: Callable[[Tensor], Any]) -> None:
    with pytest.raises((AssertionError, RuntimeError, NotImplementedError)), NoWaits():
        wait(torch.zeros(1, dtype=torch.long, device="meta"))
