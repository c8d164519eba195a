"""Questions about one image share its tokens, and are answered as if each stood alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from lightning_mllm.architectures.blip2 import Blip2
from lightning_mllm.architectures.cogvlm import CogVLM
from lightning_mllm.architectures.llava import LLaVA
from lightning_mllm.architectures.sphinx import Sphinx
from lightning_mllm.contracts import Sample
from lightning_mllm.language import prompts
from lightning_mllm.language import shared_prefix as shared_prefixes
from lightning_mllm.language.generation import Decoding
from lightning_mllm.language.shared_prefix import SharedPrefix, shared_prefix
from tests.architectures.blip2s import INSTRUCTED, OPT
from tests.architectures.samples import ONE, OTHER, TEXT, TWO, batch_of, sample

QUESTIONS = [
    sample(question, "Yes.", seed)
    for seed, question in ((1, "What is it?"), (1, "Which colour?"), (2, "What is it?"), (1, "Is it a large cube?"))
]
NETS: dict[str, tuple[Any, dict[str, Any]]] = {
    "llava": (LLaVA.tiny, {}),
    "llava, opt": (LLaVA.tiny, {"language": OPT}),
    "sphinx": (Sphinx.tiny, {}),
    "cogvlm": (CogVLM.tiny, {}),
}


def built(tiny: Any, settings: dict[str, Any]) -> Any:
    module = tiny(**settings)
    module.configure_model()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # larger weights, so that answers differ
        for parameter in module.net.language.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def passes_of(module: Any) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = []
    module.net.language.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: found.append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    return found


@pytest.mark.parametrize("kind", NETS)
def test_answers_and_likelihoods_are_those_of_each_question(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_prefixes, "LEAST_SAVED", 0.0)
    module = built(*NETS[kind])
    batch = batch_of(module, *QUESTIONS, generate=True)
    shared = shared_prefix(batch)
    assert shared is not None and shared.firsts == [0, 2] and shared.owners == [0, 0, 1, 0]
    passes, how = passes_of(module), Decoding(max_new_tokens=6)
    together = module.generate(batch, how)
    width = batch.tokens.shape[1]
    assert passes[:2] == [(2, shared.length), (4, width - shared.length)]
    alone = [module.generate(batch_of(module, each, generate=True), how)[0] for each in QUESTIONS]
    assert together == alone and len({*map(tuple, together)}) > 1
    ranked = [replace(each, candidates=("A cube.", "No.", "It is red.")) for each in QUESTIONS]
    with torch.no_grad():
        found = module.likelihoods(batch_of(module, *ranked, generate=True))
        each = [module.likelihoods(batch_of(module, one, generate=True))[0] for one in ranked]
    assert_close(torch.tensor(found), torch.tensor(each), atol=1e-4, rtol=1e-5)


def shared_of(*samples: Sample, tiny: Any = LLaVA.tiny, **settings: Any) -> SharedPrefix | None:
    module = tiny(**settings)
    module.configure_model()
    return shared_prefix(batch_of(module, *samples, generate=True))


def test_nothing_is_shared_where_little_is_spared_or_rows_begin_otherwise() -> None:
    assert shared_of(ONE, replace(ONE, id="again"), ONE) is not None
    assert shared_of(ONE, OTHER) is None, "two images"
    assert shared_of(TEXT, TEXT) is None and shared_of(ONE, ONE, TEXT) is None, "no image"
    assert shared_of(ONE, ONE, TWO) is None, "other lengths"
    both = shared_of(TWO, TWO, replace(TWO, images=TWO.images[::-1]))
    assert both is not None and both.owners == [0, 0, 1], "the same images in another order"
    instructed = {"tiny": Blip2.tiny, **INSTRUCTED}
    assert shared_of(ONE, ONE, ONE, **instructed) is None, "vectors that depend on the question"


def test_words_before_the_image_must_be_the_same_too() -> None:
    batch = batch_of(built(*NETS["llava"]), ONE, ONE, ONE, generate=True)
    batch.tokens[1, 3] += 1
    found = shared_prefix(batch)
    assert found is not None and found.owners == [0, 1, 0]


def test_sharded_ranks_share_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    module = built(*NETS["llava"])
    batch, passes = batch_of(module, *QUESTIONS, generate=True), passes_of(module)
    monkeypatch.setattr(prompts, "is_sharded", lambda model: True)
    module.generate(batch, Decoding(max_new_tokens=1))
    assert passes == [tuple(batch.tokens.shape)]
