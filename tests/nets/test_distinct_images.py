"""An image that several rows show is encoded once, with the losses and gradients of one that is encoded for each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lightning_mllm.architectures.blip2 import Blip2
from lightning_mllm.contracts import Turn
from lightning_mllm.nets import blip2
from lightning_mllm.nets.distinct_images import distinct_images
from tests.architectures.blip2s import INSTRUCTED, OPT, built, collated
from tests.architectures.samples import ONE, OTHER, TEXT, TWO

SETTINGS: dict[str, dict[str, Any]] = {"blip2": {"language": OPT}, "instructblip": INSTRUCTED}
AGAIN = replace(ONE, id="again", turns=(Turn(role="user", text="<image>\nWhich colour is it?"), *ONE.turns[1:]))


def of(module: Any, batch: Any) -> tuple[Tensor, dict[str, Tensor], list[int]]:
    """The loss, the gradients, and how many images the tower was given."""
    seen: list[int] = []
    module.zero_grad()
    handle = module.net.vision.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    loss = module(batch).loss
    loss.backward()
    handle.remove()
    return loss.detach(), {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}, seen


@pytest.mark.parametrize("name", SETTINGS)
def test_the_same_losses_and_gradients(name: str) -> None:
    module = built(Blip2, **SETTINGS[name])
    batch = collated(module, ONE, OTHER, AGAIN, TEXT)
    loss, found, seen = of(module, batch)
    with patch.object(blip2, "distinct_images", lambda batch: None):
        expected, gradients, apart = of(module, batch)
    assert (seen, apart) == ([2], [3])
    assert_close(loss, expected, atol=1e-6, rtol=1e-6)
    assert found.keys() == gradients.keys()
    for parameter, gradient in gradients.items():
        assert_close(found[parameter], gradient, atol=1e-6, rtol=1e-5, msg=lambda text, n=parameter: f"{n}: {text}")


def test_only_equal_pixels_of_one_file_are_one_image() -> None:
    module = built(Blip2, **INSTRUCTED)
    assert distinct_images(collated(module, ONE, OTHER)) is None
    assert distinct_images(collated(module, TEXT)) is None
    batch = collated(module, OTHER, ONE, AGAIN, ONE, TWO)
    found = distinct_images(batch)
    assert found is not None and len(found.of_images) == 6
    assert torch.equal(batch.images[found.places][found.of_images], batch.images)
    assert found.of_images[1:4].tolist() == [1, 1, 1] and len(found.places) < 5
    batch.images[2] += 1  # as augmentation would
    changed = distinct_images(batch)
    assert changed is not None and changed.of_images[1:4].tolist() == [1, 2, 1]


def test_training_does_not_wait_for_a_device() -> None:
    module = built(Blip2, **INSTRUCTED)
    batch = collated(module, ONE, AGAIN).to("meta")
    assert batch.num_files < batch.num_images and distinct_images(batch) is None


def test_views_of_an_image_are_encoded_one_by_one() -> None:
    """They have one number together."""
    module = built(Blip2, language=OPT, image=replace(Blip2.tiny(language=OPT).processor.image, views=5))
    batch = collated(module, ONE, AGAIN)
    assert batch.num_images == 10 and distinct_images(batch) is None
    _, _, seen = of(module, batch)
    assert seen == [10]
