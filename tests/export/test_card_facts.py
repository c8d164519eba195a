"""What a card states of a run's stages."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from lightning_mllm.export.card_facts import CardFacts
from lightning_mllm.export.record import Origin
from lightning_mllm.weights.stage_weights import write_stage

MODEL = {"class_path": "lightning_mllm.architectures.llava.LLaVA", "init_args": {}}


def write(stage: Path, *init_from: str) -> None:
    runs = stage.parents[1]
    weights = {"w": torch.tensor([float(len(stage.name))])}
    start = dict.fromkeys(init_from, 1.0)
    write_stage(stage, weights, stage=stage.name, settings={}, init_from=start, steps=1, runs=runs, lora_scale=1.0)
    (stage / "config.yaml").write_text(yaml.safe_dump({"model": MODEL, "stage": {}, "runs": str(runs)}))


@pytest.fixture
def last(tmp_path: Path) -> Path:
    """The last of three stages, the first of which is in a run of its own."""
    write(tmp_path / "runs/base/align")
    write(tmp_path / "runs/mine/pretrain", "base/align")
    write(tmp_path / "runs/mine/instruct", "pretrain")
    return tmp_path / "runs/mine/instruct"


def test_every_earlier_stage_is_stated_once_in_the_order_of_training(last: Path) -> None:
    facts = CardFacts.of(Origin.of(last))
    assert [stage.name for stage in facts.stages] == ["align", "pretrain", "instruct"] and facts.name == "mine"


def test_a_stage_that_was_trained_anew_is_not_stated(last: Path) -> None:
    write_stage(
        last.parents[1] / "base/align",
        {"w": torch.zeros(2)},
        stage="align",
        settings={},
        init_from={},
        steps=9,
        lora_scale=1.0,
    )
    assert [stage.name for stage in CardFacts.of(Origin.of(last)).stages] == ["pretrain", "instruct"]
