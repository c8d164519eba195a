"""An architecture's stages on two ranks beside the same in one process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_mllm.training.module import MultimodalModule
from lightning_mllm.training.parallelize import ParallelPlan
from lightning_mllm.training.stage import StageSettings
from tests.distributed.ranks import on_two_ranks
from tests.distributed.test_two_ranks import STRATEGIES
from tests.training.data import ToyData
from tests.training.runs import fit, losses, settings, trainer, weights

Alone = dict[str, tuple[dict[str, Tensor], list[tuple[int, float]]]]
"""Case -> final weights, and the loss of each step."""


COPIES = ParallelPlan(language_checkpointing="selective", vision_checkpointing="full")
BUSY = {"ddp": COPIES, "fsdp2": replace(COPIES, gather_frozen=True, prefetch=1)}
"""Of two ranks, beside a process without any of it."""


def same_as_alone(found: dict[str, dict[str, Tensor]], alone: Alone, folder: Path) -> None:
    """Final weights of each case, and losses that were logged in `folder`, are those of one process."""
    for case, (expected, curve) in alone.items():
        assert set(found[case]) == set(expected)
        for name, tensor in expected.items():
            torch.testing.assert_close(found[case][name], tensor, rtol=0, atol=1e-6, msg=f"{case}: {name}")
        logged = [loss for _, loss in losses(folder / case)]
        assert logged == pytest.approx([loss for _, loss in curve], rel=1e-6), case


@dataclass(frozen=True)
class Stages:
    """Stages of one architecture, each of which may start from those before it."""

    tiny: Callable[[StageSettings], MultimodalModule]
    cases: dict[str, dict[str, Any]]
    """Name -> `stage`, and further settings of `fit`."""
    answers: str
    """The case, named as its stage, from whose weights questions are answered."""
    steps: int = 3

    def run(self, folder: Path, case: str, *, ranks: int = 1, strategy: str = "") -> Any:
        given = dict(self.cases[case])
        data = {"steps": self.steps, "micro_batch": 4 // ranks, **given.pop("data", {})}
        chosen, plan = (STRATEGIES[strategy](), BUSY[strategy]) if ranks > 1 else ("auto", ParallelPlan())
        own = {"build": self.tiny, "parallel": plan, "devices": ranks, "strategy": chosen}
        return fit(folder / case, data=data, runs=str(folder), **own, **given)

    def alone(self, folder: Path) -> Alone:
        return {case: (weights(self.run(folder, case)), losses(folder / case)) for case in self.cases}

    def equal_one_process(self, strategy: str, alone: Alone, folder: Path) -> list[str]:
        """Trains and answers on two ranks; the names of the parameters of the net that answered."""

        def work(rank: int) -> tuple[dict[str, Any], list[str]]:
            found = {case: weights(self.run(folder, case, ranks=2, strategy=strategy)) for case in self.cases}
            module = self.tiny(settings(self.answers, train={}, init_from={self.answers: 1.0}))
            module.runs, module.parallel = str(folder), BUSY[strategy]
            tester = trainer(folder / self.answers, devices=2, strategy=STRATEGIES[strategy](), logger=False)
            tester.test(module, datamodule=ToyData(processor=module.processor), verbose=False)
            return found, [name for name, _ in module.net.named_parameters()]

        (first, names), _ = on_two_ranks(work)
        same_as_alone(first, alone, folder)
        return names
