"""CogVLM's published stages on two ranks give the losses and final weights of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lightning_mllm.architectures.cogvlm import CogVLM
from lightning_mllm.language.generation import Decoding
from lightning_mllm.training.stage import StageSettings
from tests.distributed.stages import Alone, Stages
from tests.distributed.test_two_ranks import OF_LINEAGES
from tests.training.runs import settings

CASES: dict[str, dict[str, Any]] = {
    "caption": {"stage": settings("caption")},
    "chat": {"stage": settings("chat", init_from={"caption": 1.0}, lr=1e-3, eps=1e-6)},
    # No token of the second rank meets an expert.
    "one text-only rank": {"stage": settings("chat_lm", lr=1e-3, eps=1e-6), "data": {"half_text": True}},
}


def tiny(stage: StageSettings) -> CogVLM:
    return CogVLM.tiny(stage=stage, decoding={"exact": Decoding(max_new_tokens=4)})


STAGES = Stages(tiny, CASES, answers="chat")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Alone:
    return STAGES.alone(tmp_path_factory.mktemp("alone"))


@pytest.mark.parametrize("strategy", OF_LINEAGES)
def test_two_ranks_equal_one_process(strategy: str, alone: Alone, tmp_path: Path) -> None:
    """Answers are written with experts and a cache, parameters spread."""
    STAGES.equal_one_process(strategy, alone, tmp_path)
