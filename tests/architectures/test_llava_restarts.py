"""LLaVA's stages, stopped after any step and started again, end with the very same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_mllm.language.lora import Lora
from tests.distributed.test_llava import tiny
from tests.training.runs import fit, losses, settings, weights
from tests.training.test_restarts import SAMPLES, STEPS, stopped

STAGES = {
    "align": settings("align"),
    "instruct": settings("instruct", gradient_clip=1.0),
    # Adapters drop out: the random states matter.
    "instruct_lora": settings("instruct_lora", lora=Lora(r=2, alpha=4, dropout=0.3)),
}
DATA = {"steps": STEPS, "samples": SAMPLES, "micro_batch": 4}


@pytest.fixture(scope="module", params=STAGES)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    arguments = {"stage": STAGES[request.param], "data": DATA, "build": tiny}
    folder = tmp_path_factory.mktemp(request.param)
    return arguments, weights(fit(folder, **arguments)), losses(folder)


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_stopped_after_each_step(step: int, whole: Any, tmp_path: Path) -> None:
    arguments, expected, curve = whole
    stopped(tmp_path, step - 1, "after", **arguments)
    found = weights(fit(tmp_path, resume=True, **arguments))
    assert set(found) == set(expected)
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []
    assert losses(tmp_path) == curve
