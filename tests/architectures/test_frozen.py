"""What a stage freezes costs no backward pass: of every architecture and its published stages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor, nn

from lightning_mllm.architectures.blip2 import Blip2
from lightning_mllm.architectures.blip2_representation import Blip2Representation
from lightning_mllm.architectures.cogvlm import CogVLM
from lightning_mllm.architectures.llava import LLaVA
from lightning_mllm.architectures.sphinx import Sphinx
from lightning_mllm.language.seq2seq import TINY_T5
from tests.architectures.blip2s import INSTRUCTED, OPT
from tests.architectures.samples import ONE, OTHER, TEXT, TWO, batch_of
from tests.training.runs import settings

STAGES: dict[str, Callable[[], Any]] = {
    "llava, align": lambda: LLaVA.tiny(stage=settings("align")),
    "llava, instruct": lambda: LLaVA.tiny(stage=settings("instruct")),
    "llava, instruct_lora": lambda: LLaVA.tiny(stage=settings("instruct_lora")),
    "blip2, representation": lambda: Blip2Representation.tiny(stage=settings("representation")),
    "blip2 of opt, generative": lambda: Blip2.tiny(stage=settings("generative"), language=OPT),
    "blip2 of t5, generative": lambda: Blip2.tiny(stage=settings("generative"), language=TINY_T5, chat="blip2_t5"),
    "instructblip": lambda: Blip2.tiny(**INSTRUCTED, stage=settings("instruct")),
    "cogvlm, caption": lambda: CogVLM.tiny(stage=settings("caption")),
    "sphinx, instruct": lambda: Sphinx.tiny(stage=settings("instruct")),
}


@pytest.mark.parametrize("stage", STAGES)
def test_what_is_frozen_costs_no_backward_pass(stage: str) -> None:
    module = STAGES[stage]()
    module.configure_model()
    net: Any = module.net
    shown: dict[str, bool] = {}

    def note(name: str) -> Callable[..., None]:
        def noted(_: nn.Module, __: Any, found: Any) -> None:
            each = found if isinstance(found, tuple) else (found,)
            shown[name] = shown.get(name, False) or any(one.requires_grad for one in each if isinstance(one, Tensor))

        return noted

    net.vision.register_forward_hook(note("vision"))
    frozen_words = False
    if hasattr(net, "language"):
        words = net.language.get_input_embeddings()
        words.register_forward_hook(note("words"))
        frozen_words = not words.weight.requires_grad
    samples = (ONE, OTHER) if stage == "blip2, representation" else (ONE, OTHER, TEXT, TWO)
    loss = module(batch_of(module, *samples)).loss
    assert shown.pop("vision") is False, "the frozen tower makes no graph"
    assert not frozen_words or shown == {"words": False}, "nothing flows back into frozen embeddings"
    loss.backward()
    assert not any(p.grad is not None for p in net.parameters() if not p.requires_grad)
