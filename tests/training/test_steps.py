"""A limit of the Trainer leaves whole optimizer steps: a part of a global batch has no right gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.training.runs import fit, losses, settings

DATA = {"steps": 8, "micro_batch": 1}
"""Four micro-batches a step."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, float]]:
    folder = tmp_path_factory.mktemp("whole")
    fit(folder, data=DATA, stage=steady())
    return losses(folder)


def steady() -> Any:
    """A rate that does not depend on how many steps there are."""
    return settings(decay="constant", warmup=0)


@pytest.mark.parametrize(
    ("limit", "steps"),
    [
        ({"limit_train_batches": 8}, 2),
        ({"limit_train_batches": 100}, 8),
        ({"limit_train_batches": 0.2}, 2),
        ({"overfit_batches": 0.3}, 3),
    ],
)
def test_steps_that_are_left_are_those_of_the_whole(
    limit: dict[str, Any], steps: int, whole: list[tuple[int, float]], tmp_path: Path
) -> None:
    module = fit(tmp_path, data=DATA, stage=steady(), **limit)
    assert losses(tmp_path) == whole[:steps]
    assert module.optimizer_steps() == module.trainer.global_step == steps


@pytest.mark.parametrize("steps", [1, 2])
def test_a_fast_dev_run_takes_whole_steps(steps: int, whole: list[tuple[int, float]], tmp_path: Path) -> None:
    module = fit(tmp_path, data=DATA, stage=steady(), fast_dev_run=steps)
    assert module.trainer.global_step == module.optimizer_steps() == steps
    assert float(module.trainer.callback_metrics["train/loss"]) == pytest.approx(whole[steps - 1][1])


@pytest.mark.parametrize("name", ["limit_train_batches", "overfit_batches"])
def test_a_part_of_a_step_is_refused_before_the_net_is_built(name: str, tmp_path: Path) -> None:
    def build(stage: Any) -> Any:
        from tests.toy import Toy

        class Unbuilt(Toy):
            def configure_model(self) -> None:
                raise AssertionError("built")

        return Unbuilt(stage=stage)

    with pytest.raises(
        ValueError,
        match=rf"^trainer.{name}: found 6 micro-batches, expected a multiple of the 4 that an optimizer step",
    ):
        given: dict[str, Any] = {name: 6}
        fit(tmp_path, data=DATA, build=build, **given)
