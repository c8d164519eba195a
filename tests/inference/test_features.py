"""Vectors of pictures and texts, and how well a pair agrees; other nets are told that they have none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from lightning_mllm.architectures.blip2_representation import Blip2Representation
from lightning_mllm.architectures.clip import ClipPretraining
from lightning_mllm.contracts import Sample, Turn
from lightning_mllm.inference import Model
from lightning_mllm.processing.image_in_memory import ImageInMemory
from tests.architectures.blip2s import built
from tests.inference.nets import model_of
from tests.inference.test_model import BLUE, RED

TEXTS = ["a red thing", "blue"]


def model(kind: type[Any]) -> Model:
    return Model(built(kind))


def test_blip2_compares_and_matches_as_it_was_trained() -> None:
    asked = model(Blip2Representation)
    images, texts = asked.encode_image([RED, BLUE]), asked.encode_text(TEXTS)
    assert images.shape == (2, 4, 16) and texts.shape == (2, 16)
    assert_close(images.norm(dim=-1), torch.ones(2, 4))
    assert_close(texts.norm(dim=-1), torch.ones(2))
    found = asked.match([RED, BLUE], TEXTS)
    assert_close(found.similarity, (images @ texts[:, :, None])[..., 0].amax(1))
    # What the matching loss is made of.
    module = asked.module
    turns = [(Turn(role="user", text="<image>"), Turn(role="assistant", text=text)) for text in TEXTS]
    rows = [
        module.processor.encode(Sample(id=text, turns=each, images=(ImageInMemory(image),)))
        for text, each, image in zip(TEXTS, turns, (RED, BLUE), strict=True)
    ]
    with torch.no_grad():
        net: Any = module.net
        pairs = net.pairs(module.processor.collate(rows))
        logits = net.match_logits(pairs.visual, pairs.tokens, pairs.real)
    assert_close(found.probability, logits.softmax(-1)[:, 1])
    assert_close(asked.match(RED, "a red thing").probability, found.probability[:1])


def test_clip_compares() -> None:
    asked = model(ClipPretraining)
    images, texts = asked.encode_image([RED, BLUE]), asked.encode_text("a red thing")
    assert images.shape == (2, 16) and texts.shape == (1, 16)
    with pytest.raises(ValueError, match="match: found ClipNet, which has no matching head, expected one of"):
        asked.match(RED, "a red thing")


def test_what_cannot_be_compared_is_told() -> None:
    for call in (lambda each: each.encode_image(RED), lambda each: each.encode_text("a")):
        with pytest.raises(ValueError, match="found LlavaNet, which compares no pictures with texts, expected a net"):
            call(model_of("llava"))
    asked = model(Blip2Representation)
    with pytest.raises(ValueError, match="match: found 2 images for 1 texts, expected one each"):
        asked.match([RED, BLUE], "red")
    with pytest.raises(ValueError, match="pair 0: found a text of more than 64 tokens"):
        asked.match(RED, "red " * 50)
