"""Many questions at once are answered as each alone, and a picture is encoded once."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from lightning_mllm.contracts import Batch
from tests.inference.nets import FEW, NETS, model_of

RED, BLUE = Image.new("RGB", (20, 30), (200, 0, 0)), Image.new("RGB", (30, 20), (0, 0, 200))
QUESTIONS = [
    (RED, "What is it?"),
    (BLUE, "Which colour has it, and why is that so?"),
    (None, "2 + 2?"),
    ([RED, BLUE], "Same?"),
    (RED, "Where?"),
    (BLUE, "What is it?"),
]


@pytest.mark.parametrize("name", NETS)
def test_answers_of_a_batch_are_those_of_each_question(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(name)
    expected = [model.answer(image, text, FEW) for image, text in QUESTIONS]
    assert len(set(expected)) > 1
    shown: list[int] = []
    net: Any = model.module.net
    encode = net.encode_images

    def counted(batch: Batch) -> Any:
        shown.append(batch.num_images and len(batch.images))
        return encode(batch)

    monkeypatch.setattr(net, "encode_images", counted)
    assert model.answers(QUESTIONS, FEW) == expected
    views = model.module.processor.image.num_views
    # InstructBLIP's Q-Former reads the question beside the picture.
    assert shown == [6 * views if name == "instructblip" else 2 * views]
    if name == "llava":
        assert model.answers(QUESTIONS, FEW, batch=2) == expected and model.answers([]) == []


def test_a_wrong_question_is_named() -> None:
    with pytest.raises(ValueError, match=r"question 1.*found 2 <image> marks for 1 images"):
        model_of("llava").answers([(RED, "What?"), (RED, "<image> or <image>?")])
