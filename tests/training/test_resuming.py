"""A stopped stage goes on with other micro-batches, packed or not, beside text or not, to the very same end."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_modules.text import TextShare
from tests.distributed.ranks import on_two_ranks
from tests.distributed.test_packed import run as packed
from tests.distributed.test_text import documents, tiny
from tests.distributed.test_two_ranks import STRATEGIES
from tests.training.runs import fit, losses, settings
from tests.training.test_restarts import StopIn, Stopped

STEPS, BATCH = 6, 8
FULL = bool(os.environ.get("MLLM_FULL"))


def train(folder: Path, micro: int, *, ranks: int = 1, **given: Any) -> None:
    """A stage that is validated behind every second step."""
    data = {"steps": STEPS, "samples": 20, "global_batch": BATCH, "micro_batch": micro}
    stage = settings("instruct", global_batch=BATCH)
    chosen = STRATEGIES["ddp"]() if ranks > 1 else "auto"
    check = {"limit_val_batches": 1, "val_check_interval": 2 * (BATCH // micro // ranks)}
    fit(folder, data=data, stage=stage, devices=ranks, strategy=chosen, **check, **given)


def stop(folder: Path, step: int, micro: int, *, ranks: int = 1) -> None:
    last = step * (BATCH // micro // ranks) - 1
    with pytest.raises(Stopped):
        train(folder, micro, ranks=ranks, callbacks=[StopIn(last, "after")])


def same(folder: Path, whole: Path) -> None:
    for column in ("train/loss", "val/exact_match"):
        found, expected = losses(folder, column), losses(whole, column)
        assert [step for step, _ in found] == [step for step, _ in expected]
        assert [loss for _, loss in found] == pytest.approx([loss for _, loss in expected], rel=1e-6)
    assert (folder / "weights" / "stage.json").is_file()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    train(folder, BATCH)
    return folder


CUTS = [(4, 2), (2, 8), (8, 1), (1, 4)] if FULL else [(4, 1), (2, 8)]


@pytest.mark.fault
def test_other_micro_batches(whole: Path, tmp_path: Path, fault_row: Callable[[str, str, str], None]) -> None:
    steps = range(1, STEPS + 1) if FULL else (3,)
    cases = [(step, *cut) for step in steps for cut in CUTS]
    for step, before, now in cases:
        folder = tmp_path / f"{step}-{before}-{now}"
        stop(folder, step, before)
        train(folder, now, resume=True)
        same(folder, whole)
    fault_row("T16", f"{len(cases)} of {len(cases)}", "resumed with other micro-batches: the same losses (1e-6)")


@pytest.mark.fault
def test_another_number_of_ranks(whole: Path, tmp_path: Path, fault_row: Callable[[str, str, str], None]) -> None:
    steps = range(1, STEPS + 1) if FULL else (3,)
    cuts = [(1, 2), (1, 4), (2, 1)] if FULL else [(1, 4)]
    cases = [(step, *cut) for step in steps for cut in cuts]
    for step, before, now in cases:
        stop(tmp_path / f"1-2-{step}-{before}-{now}", step, before)

    def work(rank: int) -> None:
        for step, before, now in cases:
            train(tmp_path / f"1-2-{step}-{before}-{now}", now, ranks=2, resume=True)
            stop(tmp_path / f"2-1-{step}-{before}-{now}", step, now, ranks=2)

    on_two_ranks(work)
    for step, before, now in cases:
        train(tmp_path / f"2-1-{step}-{before}-{now}", before, resume=True)
    for folder in tmp_path.iterdir():
        same(folder, whole)
    fault_row("T16", f"{2 * len(cases)} of {2 * len(cases)}", "resumed on 2 ranks after 1, and on 1 after 2")


def test_packed_rows_of_another_budget(tmp_path: Path) -> None:
    """Steps of other numbers of micro-batches; those of a packed row are found anew."""
    whole = tmp_path / "whole"
    packed(whole, data={"pack": True, "token_budget": 300})
    for number, (before, now) in enumerate([(300, 150), (150, 10_000)] if FULL else [(300, 150)]):
        first, then = ({"pack": True, "token_budget": each} for each in (before, now))
        folder = tmp_path / str(number)
        with pytest.raises(Stopped):
            packed(folder, data=first, callbacks=[StopIn(4 if before == 150 else 2, "after")])
        packed(folder, data=then, resume=True)
        found, expected = losses(folder), losses(whole)
        assert [step for step, _ in found] == [step for step, _ in expected]
        assert [loss for _, loss in found] == pytest.approx([loss for _, loss in expected], rel=1e-5)


def test_text_beside_images(tmp_path: Path) -> None:
    def text(folder: Path, micro: int, text_micro: int, **given: Any) -> None:
        share = TextShare(source=documents(tmp_path), tokens=4 * 48, length=48)
        data = {"steps": 4, "samples": 6, "micro_batch": micro, "text": share, "text_micro_batch": text_micro}
        fit(folder, build=tiny, stage=settings("instruct", lr=1e-3, eps=1e-6), data=data, **given)

    text(tmp_path / "whole", 4, 4)
    with pytest.raises(Stopped):
        text(tmp_path / "stopped", 2, 1, callbacks=[StopIn(2 * 6 - 1, "after")])
    text(tmp_path / "stopped", 4, 2, resume=True)
    found, expected = losses(tmp_path / "stopped"), losses(tmp_path / "whole")
    assert [loss for _, loss in found] == pytest.approx([loss for _, loss in expected], rel=1e-6)
    assert len(found) == 4


def test_a_limit_that_would_mean_other_steps(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        fit(tmp_path, data={"micro_batch": 2}, limit_train_batches=8, callbacks=[StopIn(3, "after")])
    with pytest.raises(ValueError, match=r"limit_train_batches: found 8 micro-batches, which are 8 optimizer steps"):
        fit(tmp_path, data={"micro_batch": 4}, limit_train_batches=8, resume=True)
    fit(tmp_path, data={"micro_batch": 4}, limit_train_batches=4, resume=True)
    assert [step for step, _ in losses(tmp_path)] == [1, 2, 3, 4]
