"""Which images are asked for before training."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lightning_mllm.architectures.llava import LLaVA
from lightning_mllm.training.callbacks.feature_check import FeatureCheck, shown_images
from tests.training.data import Squares, ToyData


class Bad(Squares):
    """One record breaks a rule."""

    def sample(self, index: int, generator: Any) -> Any:
        if index == 1:
            raise ValueError("a bad record")
        return super().sample(index, generator)


def names(data: object, **how: Any) -> dict[str, list[str]]:
    return {title: [ref.name for ref in refs] for title, refs in shown_images(data, **how)}


def test_images_of_sources_and_of_validation_sets() -> None:
    data = ToyData(samples=4)
    data.train |= {"texts": Squares(3, text_only=True), "bad": Bad(3)}
    every = {"squares": ["s0", "s1", "s2", "s3"], "texts": [], "bad": ["s0", "s2"]}
    found = names(data, most=None)
    assert found.pop("data.val.squares") == [f"s{n}" for n in range(10)]
    assert found == {f"data.train.{name}": each for name, each in every.items()}
    some = names(data, most=2)
    assert len(some["data.train.squares"]) == 2 and some == names(data, most=2)
    assert names(SimpleNamespace(train=3)) == {}


def test_nothing_is_asked_without_a_cache() -> None:
    data = ToyData(samples=4)
    data.train["squares"].has_image = lambda _: pytest.fail("images were asked for")  # type: ignore[method-assign]
    trainer: Any = SimpleNamespace(datamodule=data)
    FeatureCheck().setup(trainer, LLaVA.tiny(), "fit")
