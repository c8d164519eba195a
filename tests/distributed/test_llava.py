"""LLaVA's published stages on two ranks give the losses and final weights of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lightning_mllm.architectures.llava import LLaVA
from lightning_mllm.language.generation import Decoding
from lightning_mllm.language.lora import Lora
from lightning_mllm.training.stage import StageSettings
from tests.distributed.stages import Alone, Stages
from tests.distributed.test_two_ranks import OF_LINEAGES
from tests.training.runs import settings

CASES: dict[str, dict[str, Any]] = {
    "align": {"stage": settings("align")},
    "instruct": {"stage": settings("instruct", init_from={"align": 1.0}, lr=1e-3, eps=1e-6)},
    "one text-only rank": {"stage": settings("instruct", lr=1e-3, eps=1e-6), "data": {"half_text": True}},
    "instruct_lora": {
        "stage": settings("instruct_lora", init_from={"align": 1.0}, lora=Lora(r=2, alpha=4, dropout=0.0)),
    },
}


def tiny(stage: StageSettings) -> LLaVA:
    answers = {"exact": Decoding(max_new_tokens=4)}
    return LLaVA.tiny(stage=stage, chat="plain" if stage.name == "align" else "vicuna_v1", decoding=answers)


STAGES = Stages(tiny, CASES, answers="instruct_lora")
MUON = Stages(tiny, {"instruct": {"stage": settings("instruct", lr=1e-3, optimizer="muon")}}, answers="instruct")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Alone:
    return STAGES.alone(tmp_path_factory.mktemp("alone"))


@pytest.mark.parametrize("strategy", OF_LINEAGES)
def test_two_ranks_equal_one_process(strategy: str, alone: Alone, tmp_path: Path) -> None:
    """Adapters are folded, parameters spread, answers of four tokens."""
    names = STAGES.equal_one_process(strategy, alone, tmp_path)
    assert not any("lora" in name for name in names)


def test_muon_on_two_ranks_equals_one_process(tmp_path: Path) -> None:
    MUON.equal_one_process("ddp", MUON.alone(tmp_path / "alone"), tmp_path / "two")
