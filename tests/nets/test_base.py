"""Laws of every net whose language model reads tokens with visual vectors in their slots."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from lightning_mllm.architectures.blip2 import Blip2
from lightning_mllm.architectures.llava import LLaVA
from lightning_mllm.contracts import IGNORE, ParamGroup, TokenKind
from lightning_mllm.language.causal import TINY_LLAMA
from lightning_mllm.language.generation import Decoding
from lightning_mllm.language.lm_loss import head, lm_hidden_states
from lightning_mllm.language.seq2seq import TINY_T5
from lightning_mllm.language.visual_expert_lm import VisualExpertLM
from lightning_mllm.processing.shared_positions import shared_positions
from lightning_mllm.training.stage import StageSettings
from tests.architectures.blip2s import CLOSE, INSTRUCTED, OPT, built, collated
from tests.architectures.samples import ONE, OTHER, TEXT, TWO, gradients


class Expert(LLaVA):
    """LLaVA with a visual expert and shared positions."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.processor.shared_positions = True


EXPERT = VisualExpertLM(config=TINY_LLAMA.config)
T5: dict[str, Any] = {"language": TINY_T5, "chat": "blip2_t5"}
NETS: dict[str, Callable[..., Any]] = {
    "blip2, opt": lambda **more: built(Blip2, language=OPT, **more),
    "blip2, flan-t5": lambda **more: built(Blip2, **T5, **more),
    "instructblip, llama": lambda **more: built(Blip2, **INSTRUCTED, **more),
    "instructblip, flan-t5": lambda **more: built(Blip2, **INSTRUCTED | T5, **more),
    "visual expert": lambda **more: built(Expert, language=EXPERT, **more),
}
STAGES = {
    "blip2": StageSettings(name="generative"),
    "instructblip": StageSettings(name="instruct"),
    "visual expert": StageSettings(
        name="instruct", train={"language.*.vision.*": ParamGroup(), "connector.*": ParamGroup()}
    ),
}


@pytest.fixture(params=NETS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def module(kind: str) -> Any:
    return NETS[kind]()


def asked(like: Any, *candidates: str) -> Any:
    return replace(like, candidates=candidates)


def summed_loss(module: Any, like: Any, answer: str) -> Tensor:
    """Of training on that answer."""
    output = module(collated(module, replace(like, turns=(like.turns[0], replace(like.turns[1], text=answer)))))
    return output.loss * output.count


def test_likelihoods_are_minus_the_loss_of_training_on_the_answer(module: Any) -> None:
    """Rows of several lengths, two images, none, and as many candidates as each has."""
    rows = (asked(ONE, "A cube.", "No."), asked(TWO, "Yes, they are.", "No.", "Perhaps"), asked(TEXT, "Something."))
    with torch.no_grad():
        found = module.likelihoods(collated(module, *rows, generate=True))
        assert [len(row) for row in found] == [2, 3, 1]
        for row, like in zip(found, rows, strict=True):
            expected = torch.stack([-summed_loss(module, like, answer) for answer in like.candidates])
            assert_close(torch.tensor(row), expected, atol=1e-4, rtol=1e-5)
            alone = module.likelihoods(collated(module, like, generate=True))
            assert_close(torch.tensor(alone[0]), torch.tensor(row), atol=1e-4, rtol=1e-5)
        answers = module.answers(collated(module, *rows, generate=True))
        assert answers == [like.candidates[row.index(max(row))] for row, like in zip(found, rows, strict=True)]


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_changes_nothing(module: Any, side: str) -> None:
    with torch.no_grad():
        both = module(collated(module, ONE, OTHER, TEXT, side=side))
        each = [module(collated(module, one)) for one in (ONE, OTHER, TEXT)]
    assert both.count == sum(one.count for one in each)
    assert_close(both.loss * both.count, sum(one.loss * one.count for one in each), atol=1e-4, rtol=0)


def test_answers_depend_on_their_own_row_alone(module: Any) -> None:
    with torch.no_grad():
        together = module.generate(collated(module, ONE, OTHER, TEXT, generate=True), Decoding(max_new_tokens=6))
        apart = [
            module.generate(collated(module, one, generate=True), Decoding(max_new_tokens=6))[0]
            for one in (ONE, OTHER, TEXT)
        ]
    assert together == apart


def test_frames_of_a_row_are_seen_one_by_one_and_stand_in_their_order(module: Any) -> None:
    batch = collated(module, TWO)
    first, second = (replace(TWO, images=(image,), turns=_one_mark(TWO)) for image in TWO.images)
    apart = [module.net.encode_images(collated(module, each))[TokenKind.IMAGE] for each in (first, second)]
    assert_close(module.net.encode_images(batch)[TokenKind.IMAGE], torch.cat(apart), **CLOSE)
    slots = module.net.merge_visual_embeddings(batch, module.net.encode_images(batch))[batch.kinds == TokenKind.IMAGE]
    assert_close(slots, torch.cat(apart), **CLOSE)
    swapped = module.net.encode_images(collated(module, replace(TWO, images=TWO.images[::-1])))
    assert_close(swapped[TokenKind.IMAGE], torch.cat(apart[::-1]), **CLOSE)


def _one_mark(like: Any) -> Any:
    return (replace(like.turns[0], text=like.turns[0].text.replace("<image>\n", "", 1)), like.turns[1])


def test_an_image_changes_its_own_row_alone_and_what_stands_behind_it(module: Any) -> None:
    batch = collated(module, ONE, OTHER)
    images = batch.images.clone()
    images[0] = 255 - images[0]
    changed = replace(batch, images=images)
    with torch.no_grad():
        before, after = (
            module.net.merge_visual_embeddings(batch, module.net.encode_images(batch)),
            module.net.merge_visual_embeddings(changed, module.net.encode_images(changed)),
        )
        assert torch.equal(before[1], after[1])
        slots = batch.kinds[0] == TokenKind.IMAGE
        assert (before[0] != after[0]).any(-1).tolist() == slots.tolist()
        assert module(batch).loss != module(changed).loss
        text = collated(module, TEXT)
        assert torch.equal(module(text).loss, module(replace(text, images=255 - text.images)).loss)


def test_a_text_only_batch_gives_what_sees_a_gradient_of_exactly_zero(kind: str) -> None:
    module = NETS[kind](stage=STAGES[kind.split(",")[0]])
    module.requires_grad_(False)
    for name, parameter in module.net.named_parameters():
        parameter.requires_grad_(name in module.trained)
    batch = collated(module, TEXT)
    assert batch.num_images == 0 and len(batch.images) == 1
    found = gradients(module, batch)
    assert set(found) == set(module.trained)
    assert not any(gradient.any() for gradient in found.values())


def test_positions_of_the_nets_own_are_used_everywhere() -> None:
    module = NETS["visual expert"](spread=0.5)
    batch, prompt = collated(module, ONE, TWO), collated(module, ONE, TWO, generate=True)
    with torch.no_grad():
        embeds, positions = (
            module.net.merge_visual_embeddings(batch, module.net.encode_images(batch)),
            shared_positions(batch.kinds, batch.segments),
        )
        assert torch.equal(batch.positions, positions)
        hidden = lm_hidden_states(module.net.language, embeds, batch)
        assert_close(module.net.logits(batch), head(module.net.language)(hidden), **CLOSE)
        logits = head(module.net.language)(hidden)[:, :-1].flatten(0, 1)
        expected = F.cross_entropy(logits, batch.labels[:, 1:].flatten(), ignore_index=IGNORE)
        assert_close(module(batch).loss, expected, **CLOSE)
        # What is learned of a plain batch, is written, and is judged, with its own positions, is something else.
        answers, losses = module.generate(prompt, Decoding(max_new_tokens=8)), module(batch).loss
        judged = module.likelihoods(replace(prompt, candidates=[("A cube.", "No."), ("No.",)]))
        module.processor.shared_positions = False
        batch, prompt = collated(module, ONE, TWO), collated(module, ONE, TWO, generate=True)
        assert module.generate(prompt, Decoding(max_new_tokens=8)) != answers and module(batch).loss != losses
        assert module.likelihoods(replace(prompt, candidates=[("A cube.", "No."), ("No.",)])) != judged
