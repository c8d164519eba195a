from __future__ import annotations

from pathlib import Path

import pytest

from lightning_mllm.training.callbacks import checkpoint
from lightning_mllm.training.callbacks.checkpoint import StageCheckpoint
from tests.training.runs import fit, saved, saved_tensors


def test_checkpoints_hold_what_is_trained_and_plain_values(tmp_path: Path) -> None:
    module = fit(tmp_path, every_n_steps=3, data={"steps": 8})
    kept, tensors = saved(tmp_path), saved_tensors(tmp_path)
    assert kept["global_step"] == 8, "the last step is saved even where it is no multiple"
    # The language component trains, so its buffer belongs to what is kept; nothing of the frozen vision tower does.
    expected = {f"weights.{name}" for name in (*module.trained, "language.scale")}
    expected |= {f"{moment}.{name}" for moment in ("exp_avg", "exp_avg_sq") for name in module.trained}
    assert set(tensors) == expected
    assert sorted(each.name for each in (tmp_path / "checkpoints").iterdir()) == ["step-6", "step-8"]
    assert {"torch", "numpy", "numpy_rest", "python", "python_rest"} == set(
        kept["callbacks"]["RandomStates"]["ranks"][0]
    )


def test_checkpoints_at_an_interval_of_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock moves 20 s a micro-batch, two of which are a step: a minute is over at the end of steps 2, 4, 6."""

    class Clock:
        now = 0.0

        def monotonic(self) -> float:
            return self.now

    clock, steps, save = Clock(), [], StageCheckpoint.save

    class Watched(StageCheckpoint):
        def on_train_batch_end(self, *arguments: object) -> None:
            clock.now += 20
            super().on_train_batch_end(*arguments)  # pyright: ignore[reportArgumentType]

        def save(self, trainer) -> None:
            steps.append(trainer.global_step)
            save(self, trainer)

    monkeypatch.setattr(checkpoint, "time", clock)
    own = Watched("1m", folder=str(tmp_path / "own"))
    fit(tmp_path, data={"steps": 7, "micro_batch": 2}, every_n_steps=0, callbacks=[own])
    assert steps == [2, 4, 6, 7], "and after the last step"
    assert StageCheckpoint("1.5h").every_seconds == 5400


@pytest.mark.parametrize("wrong", [-1, "15", "0s", "15 minutes", "m"])
def test_what_is_no_interval_is_refused(wrong: int | str) -> None:
    with pytest.raises(
        ValueError, match=rf"checkpoint_every: found {wrong!r}, expected optimizer steps such as 200 or"
    ):
        StageCheckpoint(wrong)


@pytest.mark.parametrize("wrong", [0, -2])
def test_fewer_than_one_checkpoint_is_refused(wrong: int) -> None:
    with pytest.raises(ValueError, match=rf"checkpoint_keep: found {wrong}, expected at least 1"):
        StageCheckpoint(keep=wrong)
