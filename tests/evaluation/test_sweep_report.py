"""What a sweep's page says of its trials: importance, direction, order, and the picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightning_mllm.evaluation.parallel_coordinates import Axis
from lightning_mllm.evaluation.sweep_report import SweepReport, Tried, importances, label, picture, write_sweep

MLP = {"class_path": "lightning_mllm.connectors.projector.MlpConnector", "init_args": {"depth": 2}}


def tried(number: int, value: float | None, state: str = "finished", **values: object) -> Tried:
    return Tried(number=number, state=state, value=value, seconds=10.0, values=values)


def report(*trials: Tried, maximize: bool = False) -> SweepReport:
    return SweepReport(name="rates", method="grid", metric="val/loss", maximize=maximize, trials=trials)


@pytest.fixture
def found() -> SweepReport:
    """The loss follows the rate over orders of magnitude; the connector says nothing, the seed is the same."""
    rates = [10.0**-power for power in range(1, 6)]
    trials = [
        tried(2 * index + depth, index + 1.0, lr=rate, connector=[None, MLP][depth - 1], seed=0)
        for index, rate in enumerate(rates)
        for depth in (1, 2)
    ]
    return report(*trials, tried(11, 0.01, "stopped", lr=0.5, connector=None, seed=0), tried(12, None, "failed"))


def test_importance_and_direction(found: SweepReport) -> None:
    rate, connector = importances(found)
    assert (rate.name, connector.name, connector.correlation) == ("lr", "connector", None)
    assert rate.importance > 0.9 and rate.importance + connector.importance == pytest.approx(1)
    assert rate.correlation is not None and rate.correlation < -0.95
    assert importances(report(*found.trials[:2])) == [], "two trials say nothing"
    assert importances(report(*(tried(n, 1.0, lr=n) for n in range(4)))) == [], "nor do equal ones"


def test_the_best_was_trained_to_its_end(found: SweepReport) -> None:
    assert found.best is not None and (found.best.number, found.best.value) == (1, 1.0)
    assert [each.number for each in found.ranked][:2] == [11, 1] and found.ranked[-1].number == 12
    highest = report(*found.trials, maximize=True).best
    assert highest is not None and highest.value == 5.0
    assert report(tried(1, None, "running")).best is None


def test_labels_are_short() -> None:
    assert label(MLP) == "MlpConnector (depth=2)"
    assert label({"quickstart/sphinx/pretrain_drawn": 0.25, "b": 0.75}) == "pretrain_drawn=0.25, b=0.75"
    assert label({"connector.*": {}, "language.*": {"lr_scale": 0.1}}) == "connector.*, language.* (lr_scale=0.1)"
    assert [label(each) for each in (None, True, 1e-5, 3, "x", ["a", 1], {}, [])] == [
        *("none", "True", "1e-05", "3", "x", "a, 1", "none", "none")
    ]


def test_axes(found: SweepReport) -> None:
    axes, lines = picture(found)
    assert [axis.name for axis in axes] == ["lr", "connector", "val/loss"] and len(lines) == 11
    assert axes[0].logarithmic and [text for _, text in axes[1].ticks] == ["MlpConnector (depth=2)", "none"]
    heights = {index: line.heights for index, line in enumerate(lines)}
    assert heights[0][0] == pytest.approx(np.log10(0.1 / 1e-5) / np.log10(0.5 / 1e-5))
    assert [line.best for line in lines] == [True, *[False] * 10]
    assert lines[10].goodness == 1 and lines[9].goodness == 0
    assert Axis(name="x", values=[2.0]).height(2.0) == 0.5


def test_the_page_and_the_picture(found: SweepReport, tmp_path: Path) -> None:
    write_sweep(tmp_path, found)
    page = (tmp_path / "sweep.html").read_text(encoding="utf-8")
    for part in ("grid search", "12 trials", "MlpConnector (depth=2)", "<svg viewBox", "var(--c3)", "correlation"):
        assert part in page
    assert "{{" not in page and "<script" not in page and '<td class="number">-</td>' not in page
    with Image.open(tmp_path / "sweep.png") as image:
        assert image.size == (1920, 960)
    saved = json.loads((tmp_path / "sweep.json").read_text())
    assert (saved["best"], saved["goal"], len(saved["importance"])) == (1, "minimize", 2)
    # Nothing is finished yet.
    write_sweep(tmp_path / "begun", report(tried(1, None, "running", lr=1.0)))
    assert "no trial is finished yet" in (tmp_path / "begun/sweep.html").read_text()
    assert not (tmp_path / "begun/sweep.png").exists()
