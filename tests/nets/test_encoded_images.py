"""An image is encoded once for all who ask about it."""

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
from lightning_mllm.contracts import Batch
from lightning_mllm.language.slots import VisualVectors
from lightning_mllm.nets.encoded_images import EncodedImages
from tests.architectures.blip2s import INSTRUCTED
from tests.architectures.samples import ONE, OTHER, TEXT, TWO, batch_of

NETS = {"llava": LLaVA.tiny, "blip2": Blip2.tiny, "sphinx": Sphinx.tiny, "cogvlm": CogVLM.tiny}


class Encodes:
    """A net's `encode_images`, which notes how many views it is given."""

    def __init__(self, module: Any) -> None:
        self.module, self.views = module, []

    def __call__(self, batch: Batch) -> VisualVectors:
        self.views.append(len(batch.images))
        with torch.no_grad():
            return self.module.net.encode_images(batch)


def numbers(batch: Batch) -> list[int]:
    return [] if batch.image_ids is None else batch.image_ids.tolist()


def built(tiny: Any, **settings: Any) -> Any:
    module = tiny(**settings)
    module.configure_model()
    return module.eval()


@pytest.mark.parametrize("kind", NETS)
def test_vectors_are_those_of_every_row(kind: str) -> None:
    module = built(NETS[kind])
    encodes, images = Encodes(module), EncodedImages()
    views = len(batch_of(module, ONE).images)
    for rows, new in (((ONE, TEXT, TWO, ONE), 3), ((OTHER, ONE), 1), ((TWO, OTHER), 0), ((TEXT,), None)):
        batch = batch_of(module, *rows)
        expected, before = encodes(batch), len(encodes.views)
        found = images(encodes, batch)
        assert found.keys() == expected.keys()
        for name, each in expected.items():
            assert_close(found[name], each, atol=1e-5, rtol=1e-5)
        if new is not None:
            assert sum(encodes.views[before:]) == new * views


def test_what_was_used_last_is_kept_within_the_room() -> None:
    module = built(LLaVA.tiny)
    one, other, two = (batch_of(module, each) for each in (ONE, OTHER, replace(ONE, images=TWO.images[:1])))
    encodes = Encodes(module)
    size = sum(each.numel() * each.element_size() for each in encodes(one).values())
    assert len({number for each in (one, other, two) for number in numbers(each)}) == 3, "three files"
    images, encodes.views = EncodedImages(2 * size), []
    for batch in (one, two, one, other, one):
        images(encodes, batch)
        assert images.bytes <= 2 * size
    known = len(encodes.views)
    images(encodes, one)
    assert len(encodes.views) == known, "used last"


def test_without_room_every_batch_encodes_its_images_once() -> None:
    module = built(LLaVA.tiny)
    encodes, images = Encodes(module), EncodedImages(0)
    for _ in range(2):
        images(encodes, batch_of(module, ONE, ONE, OTHER))
    assert encodes.views == [2, 2] and images.bytes == 0


def test_an_image_that_is_read_with_its_question_is_encoded_for_each() -> None:
    module = built(Blip2.tiny, **INSTRUCTED)
    encodes = Encodes(module)
    batch = batch_of(module, ONE, replace(ONE, id="again"))
    EncodedImages()(encodes, batch)
    assert encodes.views == [2]
