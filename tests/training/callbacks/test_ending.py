"""However a training ends, what was learned is kept, and what became of the stage is told."""

from __future__ import annotations

import json
import os
import signal
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from lightning.pytorch.callbacks import EarlyStopping

from tests.training.runs import fit, losses, saved, weights

DATA = {"steps": 8, "micro_batch": 2}
"""Two micro-batches a step."""


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "weights" / "stage.json").read_text())


@pytest.mark.parametrize("interval", [4, 5], ids=["at the end of a step", "in the middle of one"])
def test_a_stage_that_early_stopping_ends_is_done(
    interval: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stop = EarlyStopping(monitor="val/exact_match", mode="max", patience=1, min_delta=2.0)
    module = fit(tmp_path, data=DATA, callbacks=[stop], limit_val_batches=1, val_check_interval=interval)
    steps = {4: 4, 5: 5}[interval]  # of the second validation, behind micro-batch 8 or 10
    assert record(tmp_path)["steps"] == steps
    assert record(tmp_path)["settings"]["ended_by"] == "EarlyStopping of val/exact_match"
    told = f"{tmp_path}: EarlyStopping of val/exact_match ended the training after step {steps} of 8; the stage is done"
    assert told in capsys.readouterr().out
    assert [step for step, _ in losses(tmp_path)] == list(range(1, steps + 1))
    whole = fit(tmp_path / "whole", data=DATA, max_steps=steps)
    assert record(tmp_path / "whole")["settings"]["ended_by"] == "steps"
    # The rates of a shorter stage are others: only that the same tensors are handed over is the same.
    assert set(weights(module)) == set(weights(whole)) == set(record(tmp_path)["names"])


def test_a_wish_to_stop_waits_for_the_step_that_has_begun(tmp_path: Path) -> None:
    class Stop(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            trainer.should_stop = trainer.should_stop or batch_idx == 4

    fit(tmp_path, data=DATA, callbacks=[Stop()])
    assert record(tmp_path)["steps"] == 3, "micro-batch 4 begins step 3"
    assert record(tmp_path)["settings"]["ended_by"] == "trainer.should_stop"
    assert saved(tmp_path)["global_step"] == 3


def test_a_stage_whose_time_is_up_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each run has time for one step, and the last one ends the stage with the bits of a single run."""
    whole = fit(tmp_path / "whole", data=DATA)
    folder = tmp_path / "pieces"
    given: dict[str, Any] = {"data": DATA, "every_n_steps": 100, "max_time": timedelta(microseconds=1)}
    capsys.readouterr()
    for step in range(1, 8):
        module = fit(folder, resume=step > 1, **given)
        assert saved(folder)["global_step"] == step
        assert not (folder / "weights").exists()
        out = capsys.readouterr().out
        assert f"{folder}: max_time ended the training after step {step} of 8; the stage is not done" in out
        assert f"the same command goes on after step {step}, from {folder / 'checkpoints' / f'step-{step}'}" in out
        assert (f"{step - 1} of 8 steps are done, step {step} is next" in out) == (step > 1)
    module = fit(folder, resume=True, **given)
    assert record(folder)["steps"] == 8
    for name, tensor in weights(whole).items():
        assert torch.equal(weights(module)[name], tensor), name


def test_a_stage_that_saves_nothing_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, data=DATA, every_n_steps=0, max_time=timedelta(microseconds=1))
    assert not (tmp_path / "checkpoints").exists()
    told = "after step 1 of 8; the stage is not done, there is no checkpoint, and the same command begins anew"
    assert told in capsys.readouterr().out


def test_a_fast_dev_run_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, data=DATA, fast_dev_run=True)
    assert list(tmp_path.iterdir()) == []
    assert "fast_dev_run ended the training after step 1" in (told := capsys.readouterr().out)
    assert "the stage is not done, nothing is kept" in told


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_end_by_a_signal_says_from_where_the_stage_goes_on(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Send(Callback):
        def __init__(self, index: int) -> None:
            self.index = index

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            if batch_idx == self.index:
                os.kill(os.getpid(), getattr(signal, name))

    handlers = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what runs in the background
    try:
        for index, told in (
            (0, "there is no checkpoint, and the same command begins anew"),
            (6, "goes on after step 3, from"),
        ):
            with pytest.raises((SystemExit, KeyboardInterrupt)):
                fit(tmp_path / str(index), data=DATA, callbacks=[Send(index)])
            error = capsys.readouterr().err
            assert f"{name} ended the training in step" in error and told in error
            signal.signal(signal.SIGINT, signal.default_int_handler)
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)
