from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightning_mllm.evaluation.run_folder import read_metrics, read_report
from tests.evaluation.run_folders import TABLE, write_run


def test_stages_stand_in_the_order_they_start_from_one_another(tmp_path: Path) -> None:
    report = read_report(write_run(tmp_path / "runs" / "quick" / "net"))
    assert report.name == "quick/net"
    assert [stage.name for stage in report.stages] == ["align", "tune"]
    assert [stage.steps for stage in report.stages] == [60, 80]
    assert report.stages[0].freeze_table == TABLE
    assert report.seconds == 61.5 + 20.0 + 7.25


def test_facts_may_also_stand_beside_the_settings(tmp_path: Path) -> None:
    root = write_run(tmp_path)
    path = root / "align" / "weights" / "stage.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, **record.pop("settings"), "settings": {"lr": 1}}))
    assert read_report(root).stages[0].seconds == 20.0


def test_curves_skip_empty_and_broken_cells(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,train/loss,val/cider\n1,2.5,\n2,nan,\n3,1.5,0.25\n3,1.25,\n")
    assert read_metrics(path) == {"train/loss": [(1, 2.5), (3, 1.25)], "val/cider": [(3, 0.25)]}
    assert read_metrics(tmp_path / "none.csv") == {}


def test_folders_without_a_result_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found no finished stage"):
        read_report(tmp_path)
    root = write_run(tmp_path / "run")
    (root / "tune" / "test.json").unlink()
    with pytest.raises(ValueError, match=r"found no test.json, expected one in the last stage \(tune\)"):
        read_report(root)
