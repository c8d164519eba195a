from __future__ import annotations

from pathlib import Path

import pytest

from lightning_mllm.training.callbacks.progress import StageProgress
from tests.training.runs import fit


def test_the_bar_counts_optimizer_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bar = StageProgress(every_n_steps=2)
    fit(
        tmp_path,
        data={"steps": 4, "micro_batch": 2},
        enable_progress_bar=True,
        callbacks=[bar],
        limit_val_batches=1,
        val_check_interval=4,
    )
    shown = capsys.readouterr().out
    assert "train" in shown and "4/4" in shown and "loss" in shown
    assert bar._progress is None
