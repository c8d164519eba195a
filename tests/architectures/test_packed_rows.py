"""Packed samples have the losses and gradients that they have in rows of their own, in every net that talks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import PreTrainedModel

from lightning_mllm.architectures.blip2 import Blip2
from lightning_mllm.architectures.cogvlm import CogVLM
from lightning_mllm.architectures.language_model import LanguageModelPretraining
from lightning_mllm.architectures.llava import LLaVA
from lightning_mllm.architectures.sphinx import Sphinx
from lightning_mllm.contracts import IGNORE, Batch, Documents, Sample, TokenKind
from lightning_mllm.language.supervised_rows import select_supervised_rows
from lightning_mllm.spans import recurring
from lightning_mllm.training.module import MultimodalModule
from lightning_mllm.training.parallelize import ParallelPlan
from tests.architectures.blip2s import INSTRUCTED, LANGUAGES, OPT
from tests.architectures.samples import ONE, OTHER, TEXT, TWO, gradients, sample
from tests.architectures.sphinxes import FIVE

CLOSE: dict[str, Any] = {"atol": 1e-6, "rtol": 1e-5}
"""Sums of float32 in another order."""

NETS: dict[str, Callable[[], MultimodalModule]] = {
    "llava": LLaVA.tiny,
    "llava with opt": lambda: LLaVA.tiny(language=OPT),
    "sphinx": Sphinx.tiny,
    "sphinx, five views": lambda: Sphinx.tiny(**FIVE),
    "cogvlm": CogVLM.tiny,
    "blip2": lambda: Blip2.tiny(language=OPT),
    "instructblip": lambda: Blip2.tiny(**INSTRUCTED),
}
SAME = [
    sample(question, answer, 1) for question, answer in (("What else?", "A cone."), ("What?", "No."), ("Who?", "I."))
]
"""About the image of ONE."""
BATCHES: dict[str, tuple[Sample, ...]] = {
    "one": (ONE,),
    "of images of their own": (ONE, OTHER),
    "an image with several questions": (OTHER, ONE, TEXT, *SAME),
    "several images and text alone": (TWO, TEXT, OTHER, TWO),
    "text alone": (TEXT, TEXT),
}


def built(make: Callable[[], MultimodalModule]) -> MultimodalModule:
    torch.manual_seed(0)
    module = make()
    module.configure_model()
    language = module.net.language
    assert isinstance(language, PreTrainedModel)
    select_supervised_rows(language)  # as in a stage
    with torch.no_grad():
        for parameter in module.net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    module.net.requires_grad_(True)
    return module.eval()


@pytest.fixture(scope="module", params=NETS)
def module(request: pytest.FixtureRequest) -> MultimodalModule:
    return built(NETS[request.param])


def both(module: MultimodalModule, *samples: Sample) -> tuple[Batch, Batch]:
    """In rows of their own, and packed."""
    rows = [module.processor.encode(each) for each in samples]
    return module.processor.collate(rows), module.processor.collate(rows, packed=True)


@pytest.mark.parametrize("name", BATCHES)
def test_losses_and_gradients_of_packed_samples(module: MultimodalModule, name: str) -> None:
    apart, packed = both(module, *BATCHES[name])
    assert packed.tokens.shape[0] == 1 and packed.ids == apart.ids
    found, expected = module(packed).terms["language"], module(apart).terms["language"]
    assert_close(found.losses, expected.losses, **CLOSE)
    assert found.tokens is not None and expected.tokens is not None
    assert found.tokens.tolist() == expected.tokens.tolist()
    ours, theirs = gradients(module, packed), gradients(module, apart)
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert_close(ours[key], value, atol=2e-5 * max(1.0, float(value.abs().max())), rtol=0)


def test_samples_of_one_image_share_it(module: MultimodalModule) -> None:
    """And not with a sample that another Q-Former instruction was written for."""
    apart, packed = both(module, ONE, TEXT, *SAME)
    instructed = packed.query_text is not None
    assert packed.num_images == (4 if instructed else 1) * (apart.num_images // 4)
    saved = apart.layout.slots[1].numel() - packed.layout.slots[1].numel()
    assert (saved == 0) if instructed else saved >= 3 * len(packed.layout.slots[1])
    assert int((packed.segments > 0).sum()) + saved <= int((apart.segments > 0).sum())


@pytest.mark.parametrize("samples", [(ONE, TEXT), (OTHER, ONE, TEXT, SAME[0])], ids=len)
def test_padding_behind_a_row_changes_nothing(module: MultimodalModule, samples: tuple[Sample, ...]) -> None:
    """It makes the sizes of products recur from row to row."""
    packed = both(module, *samples)[1]
    learned, padding = packed.layout.supervised, packed.segments == 0
    sizes = packed.tokens.shape[1], len(learned.hidden), len(learned.positions)
    assert [recurring(size) for size in sizes] == list(sizes) and padding.any() and not padding[0, 0]
    assert (packed.labels[padding] == IGNORE).all() and (packed.kinds[padding] == TokenKind.TEXT).all()
    # The last feed-forward gives no expert's token to the language model's, and writes each row once.
    filling = learned.positions[~torch.isin(learned.positions, learned.hidden)]
    assert (packed.kinds[0, filling] == TokenKind.TEXT).all()
    assert len(learned.positions.unique()) == len(learned.positions)
    expected = module(packed).terms["language"].losses
    packed.tokens.masked_fill_(padding, 7)
    assert torch.equal(module(packed).terms["language"].losses, expected)


def test_captions_of_one_image_are_predicted_from_its_last_vector() -> None:
    """Nothing stands between image and caption, so that one hidden state predicts the first word of all."""
    module = built(lambda: LLaVA.tiny(chat="plain"))
    apart, packed = both(module, *(replace(each, id=str(i)) for i, each in enumerate((ONE, *SAME, OTHER))))
    supervised = packed.layout.supervised
    learned = supervised.targets != IGNORE
    assert packed.num_images == 2 and len(supervised.hidden[learned].unique()) == int(learned.sum()) - len(SAME)
    assert_close(module(packed).terms["language"].losses, module(apart).terms["language"].losses, **CLOSE)
    ours, theirs = gradients(module, packed), gradients(module, apart)
    for key, value in theirs.items():
        assert_close(ours[key], value, atol=2e-5 * max(1.0, float(value.abs().max())), rtol=0)


@pytest.mark.parametrize("make", [LanguageModelPretraining.tiny, LLaVA.tiny, CogVLM.tiny])
def test_documents_are_packed_beside_other_samples(make: Callable[[], MultimodalModule]) -> None:
    module = built(make)
    texts = (("one text", "another"), ("a third",))
    first, last = (Sample(id=each[0], documents=Documents(texts=each)) for each in texts)
    shown = () if isinstance(module, LanguageModelPretraining) else (ONE, *SAME, TEXT)
    apart, packed = both(module, first, *shown, last)
    assert packed.segments.max() == 3 + len(shown) and len(packed.layout.supervised.counts) == 2 + len(shown)
    assert_close(module(packed).terms["language"].losses, module(apart).terms["language"].losses, **CLOSE)


def test_an_encoder_decoder_is_refused() -> None:
    module = Blip2.tiny(language=LANGUAGES["flan-t5"])
    rows = [module.processor.encode(ONE)]
    with pytest.raises(ValueError, match=r"hardware.pack: found decoder tokens .* expected false"):
        module.processor.collate(rows, packed=True)


@pytest.mark.parametrize("how", ["full", "selective"])
def test_blocks_are_computed_again_by_the_same_attention(how: Any) -> None:
    """The backward pass comes when the model's own attention is set again."""

    def checkpointed() -> MultimodalModule:
        module = LLaVA.tiny()
        module.parallel = ParallelPlan(language_checkpointing=how)
        return module

    plain, again = built(LLaVA.tiny), built(checkpointed)
    again.net.load_state_dict(plain.net.state_dict())
    assert "full" in again.checkpointing.values() or "selective" in again.checkpointing.values()
    _, batch = both(plain, *BATCHES["an image with several questions"])
    for (name, found), expected in zip(gradients(again, batch).items(), gradients(plain, batch).values(), strict=True):
        assert torch.equal(found, expected), name
