"""What YAML says of validation: how often, on what, and what is handed over."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from lightning_mllm.cli import main
from tests.commands.conftest import TOY
from tests.test_cli import refused
from tests.training.runs import losses

BEST = {
    "stage": {"validate_every": 2},
    "data": {
        "init_args": {
            "val": {
                "held_out": {
                    "source": {"class_path": "tests.training.data.Squares", "init_args": {"samples": 7}},
                    "task": "loss",
                }
            }
        }
    },
    "trainer": {
        "callbacks": [
            {
                "class_path": "lightning_mllm.training.callbacks.best.BestWeights",
                "init_args": {"monitor": "val/loss", "mode": "max"},
            }
        ]
    },
}


def test_validations_count_optimizer_steps_and_the_choice_is_part_of_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("best.yaml").write_text(yaml.safe_dump(BEST))
    quiet = "--trainer.enable_progress_bar=false"
    fit = ("fit", f"--config={TOY}", "--config=best.yaml", "--run_dir=run", "--stage.epochs=3", quiet)
    main(fit)
    assert [step for step, _ in losses(Path("run"), "val/loss")] == [2, 4, 6]
    best = json.loads(Path("run/weights/stage.json").read_text())["settings"]["best"]
    assert best["step"] == 2 and best["score"] == pytest.approx(losses(Path("run"), "val/loss")[0][1])
    changed = Path("best.yaml").read_text().replace("mode: max", "mode: min")
    Path("best.yaml").write_text(changed)
    assert "run: found weights trained under other settings (trainer.callbacks)" in refused(capsys, *fit)
    assert "stage.validate_every: found 0, expected at least 1" in refused(
        capsys, "fit", f"--config={TOY}", "--run_dir=other", "--stage.validate_every=0"
    )
