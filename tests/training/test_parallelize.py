"""The parallel plan in one process: checkpointing and compilation change memory and speed, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_mllm.architectures.blip2 import Blip2
from lightning_mllm.architectures.blip2_representation import Blip2Representation
from lightning_mllm.architectures.cogvlm import CogVLM
from lightning_mllm.architectures.llava import LLaVA
from lightning_mllm.architectures.sphinx import Sphinx
from lightning_mllm.language.lora import Lora
from lightning_mllm.language.seq2seq import TINY_T5
from lightning_mllm.training import parallelize as plans
from lightning_mllm.training.parallelize import ParallelPlan
from tests.architectures.blip2s import INSTRUCTED, OPT
from tests.architectures.samples import ONE, OTHER, TEXT, TWO, batch_of
from tests.architectures.sphinxes import POOLED
from tests.training.runs import fit, losses, settings, weights

STAGES: dict[str, Callable[[], Any]] = {
    "llava, align": lambda: LLaVA.tiny(stage=settings("align")),
    "llava, instruct": lambda: LLaVA.tiny(stage=settings("instruct")),
    "llava, instruct_lora": lambda: LLaVA.tiny(stage=settings("instruct_lora", lora=Lora(r=2, alpha=4, dropout=0.5))),
    "sphinx, instruct": lambda: Sphinx.tiny(stage=settings("instruct"), **POOLED),
    "cogvlm, chat": lambda: CogVLM.tiny(stage=settings("chat")),
    "blip2 of opt, generative": lambda: Blip2.tiny(stage=settings("generative"), language=OPT),
    "blip2 of t5, caption": lambda: Blip2.tiny(stage=settings("caption"), language=TINY_T5, chat="blip2_t5"),
    "instructblip": lambda: Blip2.tiny(**INSTRUCTED, stage=settings("instruct")),
    "blip2, representation": lambda: Blip2Representation.tiny(stage=settings("representation")),
}
FULL = ParallelPlan(language_checkpointing="full", vision_checkpointing="full")
SELECTIVE = ParallelPlan(language_checkpointing="selective", vision_checkpointing="selective")


def built(stage: str, plan: ParallelPlan = ParallelPlan()) -> Any:
    module = STAGES[stage]()
    module.parallel = plan
    module.configure_model()
    return module


def learned(module: Any, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients, with the same dropout and the same negatives whenever it is called."""
    torch.manual_seed(0)
    loss = module(batch).loss
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in module.net.named_parameters() if p.grad is not None}


AUTO = {
    "llava, align": ("none", "full"),
    "llava, instruct": ("none", "selective"),
    "llava, instruct_lora": ("none", "full"),
    "sphinx, instruct": ("none", "selective"),
    "cogvlm, chat": ("selective", "selective"),
    "blip2 of opt, generative": ("none", "full"),
    "blip2 of t5, caption": ("selective", "full"),
    "instructblip": ("none", "full"),
    "blip2, representation": ("none",),
}
"""What "auto" chooses in bf16 for the blocks of tower and language model."""


def automatic(module: Any) -> tuple[str, ...]:
    components = [name for name in ("vision", "language") if name in module.components]
    blocks = {name: module.components[name].blocks(getattr(module.net, name)) for name in components}
    assert {ParallelPlan().checkpointing(*each) for each in blocks.items()} == {"none"}
    return tuple(ParallelPlan(precision="bf16").checkpointing(*each) for each in blocks.items())


@pytest.mark.parametrize("stage", STAGES)
def test_checkpointing_changes_neither_loss_nor_gradients(stage: str) -> None:
    plain = built(stage)
    batch = batch_of(plain, ONE, OTHER)
    loss, gradients = learned(plain, batch)
    assert set(gradients) == set(plain.trained)
    assert automatic(plain) == AUTO[stage]
    for plan in (FULL, SELECTIVE):
        module = built(stage, plan)
        found = learned(module, batch)
        assert_close(found[0], loss, rtol=1e-6, atol=0)
        assert set(found[1]) == set(gradients)
        for name, gradient in gradients.items():
            assert_close(found[1][name], gradient, rtol=0, atol=1e-6, msg=name)
        names = [dict(each.net.named_parameters()).keys() for each in (plain, module)]
        assert list(names[0]) == list(names[1]) and plain.state_dict().keys() == module.state_dict().keys()


class Passes:
    """How often each block was computed, told by its first layer, whatever wraps its `forward`."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        self.counts = [0] * len(blocks)
        for number, block in enumerate(blocks):
            leaf = next(each for each in block.modules() if not list(each.children()))
            leaf.register_forward_pre_hook(partial(self._count, number))

    def _count(self, number: int, *_: Any) -> None:
        self.counts[number] += 1


@pytest.mark.parametrize("stage", ["llava, align", "blip2 of opt, generative", "blip2 of t5, caption", "cogvlm, chat"])
def test_a_frozen_language_model_in_eval_mode_is_recomputed(stage: str) -> None:
    """transformers' own checkpointing would pass over it without a word."""
    module = built(stage, FULL)
    language = module.components["language"].blocks(module.net.language)
    if stage != "cogvlm, chat":
        assert not any(block.training for block in language)
    seen = Passes(language)
    learned(module, batch_of(module, ONE))
    assert seen.counts == [2] * len(language)
    seen.counts = [0] * len(language)
    with torch.no_grad():
        module(batch_of(module, ONE))
    assert seen.counts == [1] * len(language)


def kept(forward: Callable[[], Any]) -> list[Tensor]:
    """What autograd keeps for the backward pass, parameters aside."""
    found: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            found.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return found


@pytest.mark.parametrize("stage", [each for each in STAGES if "chat" not in each and "caption" not in each])
@pytest.mark.parametrize("plan", [ParallelPlan(), FULL], ids=["plain", "checkpointed"])
def test_a_frozen_tower_keeps_no_graph_and_no_tensor(stage: str, plan: ParallelPlan) -> None:
    module = built(stage, plan)
    images = batch_of(module, ONE).images
    seen: list[Any] = []
    assert kept(lambda: seen.append(module.net.vision(images))) == []
    assert not any(tensor.requires_grad for tensor in tree_leaves(seen))


class Products(TorchDispatchMode):
    """Counts matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
        return func(*args, **(kwargs or {}))


def test_how_much_is_computed_again() -> None:
    """Of the seven products of each of Llama's two blocks: none, every second, all but the last (early stop). The last
    block keeps where its supervised rows stand behind its last product, which is so computed again (of these rows)."""
    counts = {}
    for name, plan in {"none": ParallelPlan(), "selective": SELECTIVE, "full": FULL}.items():
        module = built("llava, instruct", plan)
        loss = module(batch_of(module, ONE, OTHER)).loss
        with Products() as seen:
            loss.backward()
        counts[name] = seen.count
    assert counts["selective"] - counts["none"] == 2 * 3
    assert counts["full"] - counts["none"] == 6 + 7


def test_adapters_under_a_frozen_embedding_learn() -> None:
    """Text alone: nothing that enters the first block has a gradient."""
    module = built("llava, instruct_lora", FULL)
    _, gradients = learned(module, batch_of(module, TEXT))
    learning = [name for name, gradient in gradients.items() if "lora_B" in name and bool(gradient.any())]
    assert any(".layers.0." in name for name in learning) and len(learning) == sum("lora_B" in n for n in gradients)


@pytest.mark.parametrize("plan", [FULL, SELECTIVE], ids=["full", "selective"])
def test_routing_survives_recomputation(plan: ParallelPlan) -> None:
    """Another batch, routed otherwise, passes between a forward pass and its backward pass."""
    found = []
    for each in (ParallelPlan(), plan):
        module = built("cogvlm, chat", each)
        loss = module(batch_of(module, TWO, ONE)).loss
        module(batch_of(module, TEXT, OTHER))
        loss.backward()
        found.append({name: p.grad for name, p in module.net.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        assert_close(found[1][name], gradient, rtol=0, atol=1e-6, msg=name)


def test_compiled_blocks_compute_the_same_under_the_same_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    data = {"steps": 2}
    plain = fit(tmp_path / "plain", data=data)
    plan = ParallelPlan(language_checkpointing="full", compile=True)
    module = fit(tmp_path / "compiled", data=data, parallel=plan)
    assert len(graphs) >= 1, "nothing was compiled"
    assert list(dict(module.net.named_parameters())) == list(dict(plain.net.named_parameters()))
    assert [loss for _, loss in losses(tmp_path / "compiled")] == pytest.approx(
        [loss for _, loss in losses(tmp_path / "plain")], rel=1e-6
    )
    for name, tensor in weights(plain).items():
        assert_close(weights(module)[name], tensor, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ({"precision": "bf16-true"}, "hardware.precision: found 'bf16-true', expected one of fp32, bf16"),
        ({"language_checkpointing": "some"}, "hardware.language_checkpointing: found 'some'"),
        ({"reduce_every": "epoch"}, "hardware.reduce_every: found 'epoch'"),
        ({"shard": 0}, "hardware.shard: found 0, expected at least 1"),
        ({"prefetch": -1}, "hardware.prefetch: found -1, expected at least 0"),
    ],
)
def test_wrong_settings(setting: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        ParallelPlan(**setting)


def test_weights_that_are_trained_are_stored_in_float32() -> None:
    net = nn.ModuleDict({"vision": nn.Linear(2, 2), "language": nn.Linear(2, 2, dtype=torch.bfloat16)})
    with pytest.raises(ValueError, match=r"language\.weight: found torch\.bfloat16 in a parameter that is trained"):
        plans.parallelize(net, {}, ParallelPlan())
