from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from lightning_mllm.training.stage import StageSettings


@pytest.mark.parametrize("decay", ["cosine", "linear"])
@pytest.mark.parametrize(("warmup", "total"), [(0.03, 100), (0.1, 7), (5, 40), (0, 10)])
def test_schedule_is_that_of_the_published_recipes(decay: Any, warmup: float, total: int) -> None:
    stage = StageSettings(name="align", lr=1.0, warmup=warmup, decay=decay)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    make = get_cosine_schedule_with_warmup if decay == "cosine" else get_linear_schedule_with_warmup
    theirs = make(optimizer, stage.warmup_steps(total), total)
    for step in range(total):
        assert stage.lr_factor(step, total) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_decay_ends_at_the_least_rate() -> None:
    stage = StageSettings(name="align", lr=2e-3, min_lr=5e-4, warmup=2)
    assert stage.lr_factor(2, 10) == 1.0
    assert stage.lr_factor(10, 10) == pytest.approx(0.25)
    assert StageSettings(name="align", decay="constant", warmup=0).lr_factor(9, 10) == 1.0


def test_stages_may_share_a_schedule() -> None:
    whole = StageSettings(name="grounding", warmup=0.1)
    first, second = replace(whole, steps_after=60), replace(whole, steps_before=40)
    parts = [first.lr_factor(step, 40) for step in range(40)] + [second.lr_factor(step, 60) for step in range(60)]
    assert parts == [whole.lr_factor(step, 100) for step in range(100)]


@pytest.mark.parametrize(("per_epoch", "warmup"), [(40, 10), (8, 20)])
def test_cosine_epochs_is_that_of_lavis(per_epoch: int, warmup: int) -> None:
    """`step(cur_epoch, cur_step)` of LinearWarmupCosineLRScheduler (`lavis/common/optims.py`)."""
    lr, start, least, epochs = 1e-4, 1e-8, 1e-5, 5
    settings = {"lr": lr, "warmup_lr": start, "min_lr": least, "warmup": warmup, "epochs": epochs}
    stage = StageSettings(name="caption", decay="cosine_epochs", **settings)  # pyright: ignore[reportArgumentType]
    for epoch in range(epochs):
        for step in range(per_epoch):
            theirs = (lr - least) * 0.5 * (1 + math.cos(math.pi * epoch / epochs)) + least
            if epoch == 0:
                theirs = min(lr, start + (lr - start) * step / max(warmup, 1))
            assert lr * stage.lr_factor(epoch * per_epoch + step, epochs * per_epoch) == pytest.approx(theirs)


@pytest.mark.parametrize("decay", ["cosine", "cosine_epochs", "linear", "constant"])
def test_without_warm_up_the_first_step_has_the_whole_rate(decay: Any) -> None:
    stage = StageSettings(name="caption", decay=decay, warmup=0, epochs=2)
    assert stage.lr_factor(0, 4) == 1.0


def test_a_warm_up_begins_where_it_is_told() -> None:
    stage = StageSettings(name="instruct", lr=1e-5, warmup=4, warmup_lr=1e-6)
    assert [stage.lr_factor(step, 100) for step in range(5)] == pytest.approx([0.1, 0.325, 0.55, 0.775, 1.0])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"lr": 1e-4, "warmup_lr": 1e-3}, "stage.warmup_lr: found 0.001, expected at most stage.lr = 0.0001"),
        ({"decay": "cosine_epochs", "steps": 9}, "found cosine_epochs and stage.steps 9, expected a whole number"),
        ({"decay": "cosine_epochs", "epochs": 1.5}, "found cosine_epochs and stage.epochs 1.5, expected a whole"),
        ({"decay": "cosine_epochs", "steps_after": 9}, "found cosine_epochs in a stage that is part of a schedule"),
        ({"global_batch": 0}, "stage.global_batch: found 0, expected at least 1"),
        ({"epochs": 0}, "stage.epochs: found 0, expected a finite number above 0"),
        ({"steps": 0}, "stage.steps: found 0, expected at least 1"),
        ({"steps": 9, "epochs": 1.0}, "stage.steps: found 9 and stage.epochs 1.0, expected one of them"),
        ({"lr": -1.0}, "stage.lr: found -1.0"),
        ({"warmup": -0.1}, "stage.warmup: found -0.1"),
        ({"steps_before": -1}, "stage.steps_before: found -1, expected at least 0"),
        ({"lr": 1e-4, "min_lr": 1e-3}, "stage.min_lr: found 0.001, expected at most stage.lr = 0.0001"),
        ({"betas": (0.9, 1.0)}, "stage.betas: found 1.0"),
    ],
)
def test_numbers_out_of_range_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as error:
        StageSettings(name="align", **wrong)
    assert said in str(error.value)
