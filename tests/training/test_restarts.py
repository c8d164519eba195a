"""A run that is stopped anywhere and started again ends with the very same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Checkpoint

from tests.training.runs import fit, losses, saved, weights

STEPS, SAMPLES = 12, 12
"""Three steps of four samples an epoch: steps 3, 6, 9 and 12 are borders of epochs."""


class Stopped(Exception):
    """Stands for whatever ends a process."""


class StopIn(Checkpoint):
    """Ends the run at micro-batch `index` of the stage: before its work, after it and any saving, or where a
    validation behind it begins or ends.

    Lightning calls what it takes for a checkpoint callback last.
    """

    def __init__(self, index: int, when: str) -> None:
        self.index, self.when = index, when

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if self.when == "before" and batch_idx == self.index:
            raise Stopped

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if self.when == "after" and batch_idx == self.index:
            raise Stopped

    def on_validation_start(self, trainer, pl_module) -> None:
        self._stop(trainer, "validation begins")

    def on_validation_end(self, trainer, pl_module) -> None:
        self._stop(trainer, "validation ends")

    def _stop(self, trainer, when: str) -> None:
        if self.when == when and trainer.fit_loop.epoch_loop.batch_idx == self.index:
            raise Stopped


def stopped(folder: Path, index: int, when: str, **arguments: Any) -> None:
    with pytest.raises(Stopped):
        fit(folder, callbacks=[StopIn(index, when)], **arguments)


@pytest.fixture(scope="module", params=[(4, 1), (2, 2)], ids=["accumulation 1", "accumulation 2"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    micro, accumulation = request.param
    arguments = {
        "data": {"steps": STEPS, "samples": SAMPLES, "micro_batch": micro},
        "dropout": 0.3,
        "limit_val_batches": 1,
        "val_check_interval": 4 * accumulation,
    }
    folder = tmp_path_factory.mktemp("whole")
    module = fit(folder, **arguments)
    return arguments, accumulation, weights(module), folder


def same(folder: Path, module: Any, whole: Any) -> None:
    _, _, expected, reference = whole
    found = weights(module)
    assert set(found) == set(expected)
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []
    assert losses(folder) == losses(reference)
    assert losses(folder, "val/exact_match") == losses(reference, "val/exact_match")


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_stopped_after_each_step(step: int, whole: Any, tmp_path: Path) -> None:
    """Twelve stops, every border of an epoch among them; the file of that very step is what the run goes on from, or of
    the one before where the step was still to be validated.
    """
    arguments, accumulation, *_ = whole
    stopped(tmp_path, step * accumulation - 1, "after", **arguments)
    assert saved(tmp_path)["global_step"] == step - (step % 4 == 0)
    same(tmp_path, fit(tmp_path, resume=True, **arguments), whole)


@pytest.mark.parametrize("when", ["validation begins", "validation ends"])
@pytest.mark.parametrize("step", [8, STEPS])
def test_stopped_in_a_validation(step: int, when: str, whole: Any, tmp_path: Path) -> None:
    """Also in the last one of the stage; a validation that is over is not repeated."""
    arguments, accumulation, *_ = whole
    stopped(tmp_path, step * accumulation - 1, when, **arguments)
    assert saved(tmp_path)["global_step"] == step - (when == "validation begins")
    same(tmp_path, fit(tmp_path, resume=True, **arguments), whole)


def test_stopped_again_and_again_between_savings(whole: Any, tmp_path: Path) -> None:
    """Saved every second step and stopped in the middle of things: lost steps are replayed, again the same."""
    arguments, accumulation, *_ = whole
    arguments = {**arguments, "every_n_steps": 2}
    for round, (step, when) in enumerate([(3, "before"), (4, "after"), (6, "before"), (9, "after"), (11, "before")]):
        stopped(tmp_path, step * accumulation, when, resume=round > 0, **arguments)
    same(tmp_path, fit(tmp_path, resume=True, **arguments), whole)


def test_stopped_inside_the_window_after_a_restart(whole: Any, tmp_path: Path) -> None:
    """The file that a restart began from must not be replaced before another step is done."""
    arguments, accumulation, *_ = whole
    stopped(tmp_path, 3 * accumulation - 1, "after", **arguments)
    stopped(tmp_path, 3 * accumulation, "after" if accumulation > 1 else "before", resume=True, **arguments)
    same(tmp_path, fit(tmp_path, resume=True, **arguments), whole)


def test_a_changed_stage_does_not_resume(whole: Any, tmp_path: Path) -> None:
    from tests.training.runs import settings

    arguments, accumulation, *_ = whole
    stopped(tmp_path, 2 * accumulation, "after", **arguments)
    with pytest.raises(ValueError, match=r"written with stage.lr = 0.005, expected 0.1 as configured now"):
        fit(tmp_path, resume=True, stage=settings(lr=0.1), **arguments)
