from __future__ import annotations

import json
from pathlib import Path

import pytest
from lightning.pytorch.strategies import SingleDeviceStrategy

from lightning_mllm.training.callbacks.ending import Ending
from lightning_mllm.training.callbacks.record import StageRecord
from tests.training.runs import fit, losses, saved, settings
from tests.training.test_restarts import StopIn, Stopped


def test_a_finished_stage_tells_how_it_came_to_be(tmp_path: Path) -> None:
    fit(tmp_path, stage=settings("align"), data={"steps": 2})
    record = json.loads((tmp_path / "weights" / "stage.json").read_text())
    assert (record["stage"], record["steps"]) == ("align", 2)
    facts = record["settings"]
    assert facts["config"]["lr"] == 5e-3
    assert facts["provenance"]["language"] == {"fresh": 16}
    assert [(row["part"], row["trained"]) for row in facts["freeze_table"]] == [
        ("vision", False),
        ("connector", True),
        ("language", False),
    ]
    assert facts["seconds"] > 0


def test_rank_0_says_whether_the_stage_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broadcast(self: object, own: object) -> object:
        return Ending("max_time") if isinstance(own, Ending) else own

    monkeypatch.setattr(SingleDeviceStrategy, "broadcast", broadcast)
    fit(tmp_path, data={"steps": 1})
    assert not (tmp_path / "weights").exists()


def test_a_stopped_stage_is_not_finished_and_time_adds_up(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        fit(tmp_path, data={"steps": 4}, callbacks=[StopIn(1, "after")])
    assert not (tmp_path / "weights").exists()
    fit(tmp_path, data={"steps": 4}, max_steps=3, every_n_steps=0)
    assert json.loads((tmp_path / "weights" / "stage.json").read_text())["steps"] == 3


def test_a_stage_that_ended_behind_the_last_of_max_steps_hands_its_weights_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*given: object) -> None:
        raise Stopped

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(StageRecord, "on_train_end", stop)
        fit(tmp_path, data={"steps": 4, "micro_batch": 2}, max_steps=3)
    assert saved(tmp_path)["global_step"] == 3 and not (tmp_path / "weights").exists()
    fit(tmp_path, data={"steps": 4, "micro_batch": 2}, max_steps=3, resume=True)
    record = json.loads((tmp_path / "weights" / "stage.json").read_text())
    assert (record["steps"], record["settings"]["ended_by"]) == (3, "steps")
    assert [step for step, _ in losses(tmp_path)] == [1, 2, 3]
