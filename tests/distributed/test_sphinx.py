"""SPHINX's published stages on two ranks give the losses and final weights of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_mllm.architectures.sphinx import Sphinx
from lightning_mllm.evaluation.generation import Decoding
from lightning_mllm.training.stage import StageSettings
from tests.architectures.sphinxes import POOLED
from tests.distributed.ranks import on_two_ranks
from tests.distributed.test_two_ranks import STRATEGIES
from tests.training.data import ToyData
from tests.training.runs import fit, losses, settings, trainer, weights

CASES: dict[str, dict[str, Any]] = {
    "real": {"stage": settings("pretrain")},
    "synthetic": {"stage": settings("pretrain", lr=1e-3)},
    # One rank is text alone; both start between two runs.
    "instruct": {
        "stage": settings("instruct", init_from={"real": 0.25, "synthetic": 0.75}, lr=1e-3, eps=1e-6),
        "data": {"half_text": True},
    },
}


def tiny(stage: StageSettings) -> Sphinx:
    return Sphinx.tiny(stage=stage, decoding={"exact": Decoding(max_new_tokens=4)}, **POOLED)


def run(folder: Path, case: str, *, ranks: int = 1, strategy: str = "") -> Any:
    given = dict(CASES[case])
    data = {"steps": 2, "micro_batch": 4 // ranks, **given.pop("data", {})}
    chosen = STRATEGIES[strategy]() if ranks > 1 else "auto"
    return fit(folder / case, data=data, build=tiny, runs=str(folder), devices=ranks, strategy=chosen, **given)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("alone")
    return {case: (weights(run(folder, case)), losses(folder / case)) for case in CASES}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_ranks_equal_one_process(strategy: str, alone: dict[str, Any], tmp_path: Path) -> None:
    def work(rank: int) -> dict[str, Any]:
        found: dict[str, Any] = {case: weights(run(tmp_path, case, ranks=2, strategy=strategy)) for case in CASES}
        # Answers, parameters spread.
        module = tiny(settings("instruct", train={}, init_from={"instruct": 1.0}))
        module.runs = str(tmp_path)
        tester = trainer(tmp_path / "instruct", devices=2, strategy=STRATEGIES[strategy](), logger=False)
        tester.test(module, datamodule=ToyData(processor=module.processor), verbose=False)
        return found

    first, _ = on_two_ranks(work)
    for case, (expected, curve) in alone.items():
        assert set(first[case]) == set(expected)
        for name, tensor in expected.items():
            torch.testing.assert_close(first[case][name], tensor, rtol=0, atol=1e-6, msg=f"{case}: {name}")
        found = losses(tmp_path / case)
        assert [loss for _, loss in found] == pytest.approx([loss for _, loss in curve], rel=1e-6), case
