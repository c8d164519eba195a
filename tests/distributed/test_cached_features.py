"""Two ranks that train from cached features give the losses and weights of one process with the tower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_mllm.architectures.llava import LLaVA
from lightning_mllm.training.callbacks.feature_check import shown_images
from lightning_mllm.training.sharding import ShardedStrategy
from lightning_mllm.training.stage import StageSettings
from lightning_mllm.vision.cached import CachedVision
from tests.distributed.ranks import on_two_ranks
from tests.training.caches import cached, written
from tests.training.data import ToyData
from tests.training.runs import fit, losses, settings, weights

DATA: dict[str, Any] = {"samples": 16, "steps": 3, "half_text": True}


def test_two_ranks_equal_one_process_with_the_tower(tmp_path: Path) -> None:
    """One of them, of a micro-batch of two, never sees an image."""

    def plain(stage: StageSettings) -> LLaVA:
        return LLaVA.tiny(stage=stage)

    def without(stage: StageSettings) -> Any:
        return cached(plain(stage), tmp_path / "cache", build=False)

    stage = settings("instruct")
    data = ToyData(**DATA)
    refs = [ref for _, images in shown_images(data) for ref in images]
    # Fresh values, and so their features, are those of the seed, which training sets.
    alone = weights(fit(tmp_path / "alone", stage=stage, data={**DATA, "micro_batch": 4}, build=plain))
    written(plain(stage), tmp_path / "cache", refs)

    def work(rank: int) -> dict[str, Tensor]:
        strategy = {"devices": 2, "strategy": ShardedStrategy()}
        module = fit(tmp_path / "two", stage=stage, data={**DATA, "micro_batch": 2}, build=without, **strategy)
        assert isinstance(module.net.vision, CachedVision)
        return weights(module)

    first, _ = on_two_ranks(work)
    assert first.keys() == alone.keys()
    for name, tensor in alone.items():
        torch.testing.assert_close(first[name], tensor, rtol=0, atol=1e-6, msg=name)
    found, expected = (losses(tmp_path / run) for run in ("two", "alone"))
    assert [loss for _, loss in found] == pytest.approx([loss for _, loss in expected], rel=1e-6) and len(found) == 3
