"""BLIP-2's stages, stopped and started again, end with the very same bits: negatives and dropout are drawn anew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_mllm.architectures.blip2 import Blip2
from lightning_mllm.architectures.blip2_representation import TINY, Blip2Representation
from tests.architectures.blip2s import INSTRUCTED
from tests.training.data import ToyData
from tests.training.runs import fit, losses, settings, weights
from tests.training.test_restarts import stopped

DROPPING = replace(TINY["qformer"], dropout=0.3)
STAGES: dict[str, Callable[..., Any]] = {
    "representation": lambda stage: Blip2Representation.tiny(stage=stage, qformer=DROPPING),
    "instruct": lambda stage: Blip2.tiny(**INSTRUCTED, stage=stage, qformer=DROPPING),
}
STEPS = 5
"""Three to an epoch."""


@pytest.fixture(scope="module", params=STAGES)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    data = {"steps": STEPS, "samples": 12, "micro_batch": 4}
    arguments = {"stage": settings(request.param), "data": data, "build": STAGES[request.param]}
    folder = tmp_path_factory.mktemp(request.param)
    return arguments, weights(fit(folder, **arguments)), losses(folder)


@pytest.mark.parametrize("step", [1, 3, 4])
def test_stopped_after_a_step(step: int, whole: Any, tmp_path: Path) -> None:
    arguments, expected, curve = whole
    stopped(tmp_path, step - 1, "after", **arguments)
    found = weights(fit(tmp_path, resume=True, **arguments))
    assert set(found) == set(expected)
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []
    assert losses(tmp_path) == curve


def test_negatives_and_dropout_are_drawn(tmp_path: Path) -> None:
    """Else the test above would prove nothing: the same step twice is not the same."""
    module = STAGES["representation"](settings("representation"))
    module.configure_model()
    batch = next(iter(ToyData(processor=module.processor).train_dataloader()))
    assert len({float(module(batch).terms["matching"].mean) for _ in range(4)}) == 4
