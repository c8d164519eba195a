"""SPHINX's published stages on two ranks give the losses and final weights of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lightning_mllm.architectures.sphinx import Sphinx
from lightning_mllm.language.generation import Decoding
from lightning_mllm.training.stage import StageSettings
from tests.architectures.sphinxes import POOLED
from tests.distributed.stages import Alone, Stages
from tests.distributed.test_two_ranks import OF_LINEAGES
from tests.training.runs import settings

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


STAGES = Stages(tiny, CASES, answers="instruct", steps=2)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Alone:
    return STAGES.alone(tmp_path_factory.mktemp("alone"))


@pytest.mark.parametrize("strategy", OF_LINEAGES)
def test_two_ranks_equal_one_process(strategy: str, alone: Alone, tmp_path: Path) -> None:
    """Answers are written, parameters spread."""
    STAGES.equal_one_process(strategy, alone, tmp_path)
