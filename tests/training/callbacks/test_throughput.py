"""Rates over the time between two rows, without validation; what is waited for the loader."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from lightning_mllm.training.callbacks import throughput
from lightning_mllm.training.callbacks.metrics_csv import MetricsCsv
from lightning_mllm.training.callbacks.throughput import FetchClock, Throughput
from tests.toy import Toy
from tests.training.runs import fit


def test_rates_are_of_the_time_since_the_row_before(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now[0])

    def after(seconds: float) -> None:
        now[0] += seconds

    found, clock = Throughput(), FetchClock()
    found._fetch = clock
    found.on_train_start(None, None)  # pyright: ignore[reportArgumentType]
    for _ in range(2):
        clock.start("[_TrainingEpochLoop].train_dataloader_next")
        after(1)
        clock.stop("[_TrainingEpochLoop].train_dataloader_next")
        with clock.profile("run_training_batch"):
            after(3)
        clock.start("[_EvaluationLoop].val_next")
        clock.stop("[_EvaluationLoop].val_next")
        found.count({"tokens": 400, "supervised_tokens": 40, "images": 8})
    found.on_validation_start(None, None)  # pyright: ignore[reportArgumentType]
    after(1000)
    found.on_validation_end(None, None)  # pyright: ignore[reportArgumentType]
    row = found.row(torch.device("cpu"))
    assert 0.01 < row.pop("memory/host_gb") < 1000
    assert row.pop("throughput/tflops") == 0.0, "no net was told"
    assert row == {
        "throughput/tokens_per_second": 100.0,
        "throughput/supervised_tokens_per_second": 10.0,
        "throughput/images_per_second": 2.0,
        "throughput/seconds_per_step": 4.0,
        "throughput/data_wait": 0.25,
    }
    after(5)
    found.count({"tokens": 50, "supervised_tokens": 5, "images": 0})
    row = found.row(torch.device("cpu"))
    assert row["throughput/tokens_per_second"] == 10.0 and row["throughput/data_wait"] == 0.0


def test_the_tokens_and_images_of_a_step_are_those_of_its_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[dict[str, float]] = []
    own = Throughput.count

    def count(throughput: Throughput, each: dict[str, float]) -> None:
        counts.append(each)
        own(throughput, each)

    monkeypatch.setattr(Throughput, "count", count)
    module = fit(tmp_path, callbacks=[Throughput()], log_every_n_steps=2)
    rows = MetricsCsv(str(tmp_path / "metrics.csv")).rows()
    assert list(rows) == [step for step in range(1, len(counts) + 1) if step % 2 == 0]
    assert all("throughput/seconds_per_step" in row for row in rows.values())
    per_token = {1e12 * row["throughput/tflops"] / row["throughput/tokens_per_second"] for row in rows.values()}
    trained = sum(row.parameters for row in module.freeze_rows() if row.trained)
    assert max(per_token) < 6 * trained and min(per_token) > trained
    assert all(0 < row["throughput/mfu_measured"] < 1 for row in rows.values())
    assert not _get_current_dispatch_mode_stack(), "counting did not end"
    # "<image>colour" asks, four slots and ":" beside it; "red", "green", "blue" or "grey" and an end answer.
    assert all(each["images"] <= 4 and each["tokens"] >= 4 * 8 for each in counts)
    assert len({each["tokens"] for each in counts}) > 1
    assert all(0 < each["supervised_tokens"] < each["tokens"] for each in counts)


def test_counting_ends_with_an_error(tmp_path: Path) -> None:
    class Broken(Toy):
        def forward(self, batch: object) -> object:  # pyright: ignore[reportIncompatibleMethodOverride]
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fit(tmp_path, build=lambda stage: Broken(stage=stage), callbacks=[Throughput()])
    assert not _get_current_dispatch_mode_stack()
