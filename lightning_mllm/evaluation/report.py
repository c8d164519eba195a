"""`report.json` and `report.html` of an experiment."""

from __future__ import annotations

from pathlib import Path

from lightning_mllm.evaluation.page import page
from lightning_mllm.evaluation.results import write_json
from lightning_mllm.evaluation.run_folder import Report, read_report
from lightning_mllm.weights.files import write_text


def write_report(run_root: Path) -> Report:
    """Writes `report.json` and the self-contained `report.html` into `run_root`, a folder of finished stages.

    `report.json` holds the scores of the tested stage, each with value, low and high, and `seconds`. Where several
    stages were tested, their scores are named STAGE/SCORE.

    Raises:
        ValueError: there is no finished stage, or none was tested.
    """
    report = read_report(Path(run_root))
    write_json(Path(run_root) / "report.json", {**report.scores, "seconds": report.seconds})
    write_text(Path(run_root) / "report.html", page(report))
    return report
