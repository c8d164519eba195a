"""What is in a run folder is never lost in silence: done, gone on from, or refused with the keys that differ."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from lightning_mllm.cli import main
from lightning_mllm.training.callbacks.checkpoint import StageCheckpoint
from tests.commands.conftest import TOY
from tests.test_cli import refused

FIT = ("fit", f"--config={TOY}", "--run_dir=run", "--stage.epochs=1", "--trainer.enable_progress_bar=false")
RECORD, LAST = Path("run/weights/stage.json"), Path("run/checkpoints/step-1/state.pt")


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_finished_run_is_done_refused_or_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    main(FIT)
    before = RECORD.read_bytes()
    capsys.readouterr()
    main([*FIT, "--hardware.micro_batch=2"])
    assert capsys.readouterr().out == "run is done\n"
    sentence = refused(capsys, *FIT, "--stage.lr=1e-3", "--data.group=similar_length")
    assert "run: found weights trained under other settings (data.group, stage.lr), expected the same" in sentence
    assert "--overwrite" in sentence
    assert "run: found weights" in refused(capsys, *FIT, "--stage.lr=1e-3", "--overwrite=false")
    assert RECORD.read_bytes() == before
    (Path("run") / "test.json").write_text("{}")
    main([*FIT, "--stage.lr=1e-3", "--overwrite"])
    record = json.loads(RECORD.read_text())
    assert record["settings"]["config"]["stage"]["lr"] == 1e-3 and record["steps"] == 2
    assert not Path("run/test.json").exists() and len(Path("run/metrics.csv").read_text().splitlines()) == 3
    # The record of the run does not overwrite when it is trained from again.
    main(["fit", "--config=run/config.yaml"])
    assert capsys.readouterr().out.endswith("run is done\n")


def test_a_stopped_run_goes_on_or_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    look = StageCheckpoint.on_train_batch_end

    def stop(self: StageCheckpoint, *arguments: object) -> None:
        signal.raise_signal(signal.SIGINT)
        look(self, *arguments)  # pyright: ignore[reportArgumentType]

    with monkeypatch.context() as patch:
        patch.setattr(StageCheckpoint, "on_train_batch_end", stop)
        with pytest.raises(SystemExit) as stopped:
            main([*FIT, "--hardware.micro_batch=2"])
    assert stopped.value.code == 130
    told = capsys.readouterr().err
    assert "run: SIGINT ended the training after step 1; the same command goes on after step 1" in told
    assert "mllm: " not in told
    assert LAST.is_file() and not RECORD.exists()
    before = LAST.read_bytes()
    sentence = refused(capsys, *FIT, "--stage.lr=1e-3")
    assert "run: found a checkpoint written under other settings (stage.lr), expected the same" in sentence
    assert LAST.read_bytes() == before
    main(FIT)
    assert "run goes on from checkpoints/step-1" in capsys.readouterr().out
    assert json.loads(RECORD.read_text())["steps"] == 2
    assert len(Path("run/metrics.csv").read_text().splitlines()) == 3


def test_only_training_overwrites(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--overwrite" in refused(capsys, "test", *FIT[1:], "--overwrite")
