from __future__ import annotations

from pathlib import Path

from lightning_mllm.training.callbacks.metrics_csv import MetricsCsv


def test_new_metrics_add_columns(tmp_path: Path) -> None:
    log = MetricsCsv(str(tmp_path / "run" / "metrics.csv"))
    log.log_metrics({"loss": 0.1, "epoch": 0}, step=1)
    log.log_metrics({"loss": 0.25}, step=2)
    log.log_metrics({"score": 1.0}, step=2)
    log.log_metrics({"epoch": 0}, step=3)
    log.log_metrics({"loss": 1e-9, "score": 0.5}, step=3)
    assert log.path.read_text().splitlines() == ["step,loss,score", "1,0.1,", "2,0.25,", "2,,1.0", "3,1e-09,0.5"]
    assert [each.name for each in log.path.parent.iterdir()] == ["metrics.csv"]


def test_a_resumed_run_drops_what_it_will_do_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    log = MetricsCsv(str(path))
    for step in range(1, 6):
        log.log_metrics({"loss": float(step)}, step=step)
    with open(path, "a") as file:
        file.write("6,6.")  # the process ended in the middle of a line
    again = MetricsCsv(str(path))
    again.truncate(3)
    again.log_metrics({"loss": 40.0}, step=4)
    assert path.read_text().splitlines() == ["step,loss", "1,1.0", "2,2.0", "3,3.0", "4,40.0"]


def test_a_run_from_the_start_begins_a_new_table(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    MetricsCsv(str(path)).log_metrics({"old": 1.0}, step=7)
    log = MetricsCsv(str(path))
    log.truncate(0)
    log.log_metrics({"loss": 1.0}, step=1)
    assert path.read_text().splitlines() == ["step,loss", "1,1.0"]
