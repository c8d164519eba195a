"""Which loggers a stage has: by short names, from YAML and the command line, beside `metrics.csv`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_mllm.commands.config import ConfigError
from lightning_mllm.commands.launch import ParsedCLI, compose, main
from lightning_mllm.commands.loggers import experiment_of, loggers_of, named
from lightning_mllm.training.callbacks.metrics_csv import MetricsCsv
from lightning_mllm.training.loggers.wandb_tracker import WandbTracker
from tests.training.loggers.test_wandb_tracker import TRACKED

TRACKER = "lightning_mllm.training.loggers.wandb_tracker.WandbTracker"
TENSORBOARD = "lightning.pytorch.loggers.TensorBoardLogger"


def logger(*options: str) -> Any:
    return compose(["fit", *TRACKED, *options], ParsedCLI).resolved["trainer"]["logger"]  # pyright: ignore


def test_short_names_on_the_command_line() -> None:
    tracker, board = logger(
        "--trainer.logger=wandb",
        "--trainer.logger.project=mine",
        "--trainer.logger.tags=[a]",
        "--trainer.logger+=tensorboard",
    )
    assert tracker["class_path"] == TRACKER and board["class_path"] == TENSORBOARD
    assert tracker["init_args"]["project"] == "mine" and tracker["init_args"]["tags"] == ["a"]
    assert board["init_args"]["save_dir"] == "{run_dir}"
    assert logger("--trainer.logger=TensorBoardLogger", "--trainer.logger.save_dir=x")["init_args"]["save_dir"] == "x"
    assert logger("--trainer.logger=False") is False


def test_short_names() -> None:
    both = named(["wandb", {"class_path": "CSVLogger", "init_args": {"name": "mine"}}], "trainer.logger")
    assert both == [
        {"class_path": TRACKER, "init_args": {}},
        {
            "class_path": "lightning.pytorch.loggers.CSVLogger",
            "init_args": {"save_dir": "{run_dir}", "name": "mine", "version": ""},
        },
    ]
    assert named("own.Logger", "trainer.logger") == {"class_path": "own.Logger", "init_args": {}}
    assert named(None, "trainer.logger") is None and named(True, "trainer.logger") is True
    told = r"trainer.logger: found 'TensorbordLogger', expected one of .*nearest is 'TensorBoardLogger'"
    with pytest.raises(ConfigError, match=told):
        named("TensorbordLogger", "trainer.logger")


def test_short_names_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "tracked.yaml"
    file.write_text("trainer: {logger: {class_path: wandb, init_args: {log_weights: true}}}\n")
    found = logger(f"--config={file}", "--trainer.logger.project=mine")
    assert found["class_path"] == TRACKER and found["init_args"]["log_weights"] is True
    assert found["init_args"]["project"] == "mine"
    file.write_text("trainer:\n  logger: wandbb\n")
    with pytest.raises(ConfigError, match=r"tracked.yaml:2: trainer.logger: found 'wandbb'.*nearest is 'wandb'"):
        logger(f"--config={file}")


def test_what_asks_for_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "runs/x/y/align"
    assert loggers_of(None, run, "fit", str(tmp_path / "runs")) == []  # WANDB_MODE is "disabled"
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tracker,) = loggers_of(None, run, "fit", str(tmp_path / "runs"))
    assert isinstance(tracker, WandbTracker) and tracker.defaults == ("x/y", "x/y/align")
    assert loggers_of(None, run, "predict", "runs") == loggers_of(False, run, "fit", "runs") == []
    own = CSVLogger(str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        asking, offline = WandbTracker(), WandbTracker(mode="offline")
        assert loggers_of([asking, own, offline], run, "fit", "runs") == [own, offline]
    assert loggers_of([own], run, "fit", "runs") == [own]
    assert experiment_of(tmp_path / "somewhere/align", "runs") == "somewhere"
    monkeypatch.setenv("WANDB_MODE", "perhaps")
    with pytest.raises(ConfigError, match="WANDB_MODE: found 'perhaps'"):
        loggers_of(None, run, "fit", "runs")
    with pytest.raises(ConfigError, match="WANDB_MODE: found 'perhaps'"):
        loggers_of([WandbTracker()], run, "fit", "runs")


def test_tensorboard_has_curves_pictures_and_answers(tmp_path: Path) -> None:
    main(["fit", *TRACKED, f"--run_dir={tmp_path}", "--stage.epochs=1", "--trainer.logger=[tensorboard, CSVLogger]"])
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    known = MetricsCsv(str(tmp_path / "metrics.csv")).rows()
    assert list(known) == [1, 2] and (tmp_path / "csv/metrics.csv").is_file()
    for name in ("train/loss", "throughput/tokens_per_second", "val/exact_match"):
        values = {each.step: each.value for each in events.Scalars(name)}
        assert values == pytest.approx({step: row[name] for step, row in known.items() if name in row})
    assert len([each for each in tags["images"] if each.startswith("val/exact_answers/")]) == 6
    assert "val/exact_answers/text_summary" in tags["tensors"]
    text = events.Tensors("val/exact_answers/text_summary")[0].tensor_proto.string_val[0].decode()
    assert text.startswith("step | id | question | answer | reference | score\n--- | ") and text.count("\n") == 7
