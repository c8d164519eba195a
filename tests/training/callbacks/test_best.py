"""A loss on held-out data, and the weights of the best validation as what a stage hands over."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from safetensors.torch import load_file
from torch import Tensor

from data_modules.evaluation import EvaluationSet
from lightning_mllm.training.callbacks.averaging import EMA, averaged
from lightning_mllm.training.callbacks.best import BestWeights
from lightning_mllm.training.checkpoints import SavedTensors, ShardedCheckpointIO, newest, read_state
from tests.distributed.ranks import on_two_ranks
from tests.distributed.test_two_ranks import STRATEGIES
from tests.toy import Toy
from tests.training.data import Squares, ToyData
from tests.training.runs import losses, settings, trainer
from tests.training.test_restarts import StopIn, Stopped

STEPS = 6


def held_out(**more: Any) -> dict[str, EvaluationSet]:
    return {"held_out": EvaluationSet(source=Squares(7), task="loss", **more)}


class Watch(Callback):
    """The weights that each validation saw."""

    def __init__(self) -> None:
        self.seen: dict[int, dict[str, Tensor]] = {}

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        with averaged(trainer, pl_module):
            self.seen[trainer.global_step] = {n: t.clone() for n, t in pl_module.trained_tensors().items()}


def run(folder: Path, *callbacks: Any, resume: bool = False, val: Any = None, **arguments: Any) -> Toy:
    torch.manual_seed(3)
    # A rate at which the loss goes up and down.
    module = Toy(stage=settings(lr=0.15, warmup=1))
    data = ToyData(steps=STEPS, micro_batch=2, processor=module.processor)
    data.val = held_out() if val is None else val
    given = {"limit_val_batches": 1.0, **arguments}
    own = trainer(folder, callbacks=list(callbacks), **given)
    own.accumulate_grad_batches = data.accumulation(own.world_size)
    own.val_check_batch = own.val_check_interval = own.accumulate_grad_batches
    own.fit(module, datamodule=data, ckpt_path=newest(folder / "checkpoints") if resume else None)
    return module


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "weights" / "stage.json").read_text())


def by_hand(weights: dict[str, Tensor]) -> float:
    """Cross-entropy of a token of the held-out answers."""
    module = Toy(stage=settings())
    module.configure_model()
    module.load_state_dict({**module.state_dict(), **weights})
    module.eval()
    data = ToyData(processor=module.processor)
    data.val = held_out()
    total, tokens = 0.0, 0
    for batch in data.val_dataloader()[0]:
        assert (batch.labels != -100).any(), "encoded to be learned"
        with torch.no_grad():
            output = module(replace(batch))
        total, tokens = total + float(output.loss * output.count), tokens + int(output.count)
    return total / tokens


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_stage_hands_over_the_weights_of_the_best_validation(mode: Any, tmp_path: Path) -> None:
    watch = Watch()
    run(tmp_path, BestWeights("val/loss", mode), watch)
    found = dict(losses(tmp_path, "val/loss"))
    assert list(found) == list(watch.seen) == list(range(1, STEPS + 1))
    for step, value in found.items():
        assert value == pytest.approx(by_hand(watch.seen[step]), rel=1e-5)
    best = (min if mode == "min" else max)(found, key=lambda step: found[step])
    assert mode == "min" or best != STEPS, "the last weights would be no test"
    facts = record(tmp_path)["settings"]["best"]
    assert facts == {"monitor": "val/loss", "mode": mode, "step": best, "score": pytest.approx(found[best])}
    assert record(tmp_path)["steps"] == STEPS
    handed = load_file(tmp_path / "weights" / "model.safetensors")
    assert set(handed) == set(watch.seen[best])
    for name, tensor in handed.items():
        assert torch.equal(tensor, watch.seen[best][name]), name


@pytest.mark.parametrize("index", [3, 6, 9])
def test_a_resumed_stage_hands_over_the_same(index: int, tmp_path: Path) -> None:
    """Stopped behind a step, inside one, and with a checkpoint of every second step alone."""
    every: dict[str, Any] = {} if index < 9 else {"every_n_steps": 2}
    run(tmp_path / "whole", BestWeights(mode="max"))
    with pytest.raises(Stopped):
        run(tmp_path / "cut", BestWeights(mode="max"), StopIn(index, "before"), **every)
    run(tmp_path / "cut", BestWeights(mode="max"), resume=True, **every)
    handed = [load_file(tmp_path / name / "weights" / "model.safetensors") for name in ("whole", "cut")]
    assert all(torch.equal(handed[0][name], handed[1][name]) for name in handed[0])
    assert record(tmp_path / "whole")["settings"]["best"] == record(tmp_path / "cut")["settings"]["best"]


def test_a_stage_begun_anew_forgets_the_best_of_another(tmp_path: Path) -> None:
    run(tmp_path, BestWeights(mode="max"))
    first = record(tmp_path)["settings"]["best"]
    (kept,) = (tmp_path / "checkpoints").glob("best-*")
    io = ShardedCheckpointIO()
    io.save(kept, dict(SavedTensors(kept)), {**read_state(kept), "score": 1e9})
    io.wait()
    run(tmp_path, BestWeights(mode="max"))
    assert record(tmp_path)["settings"]["best"] == first
    (kept,) = (tmp_path / "checkpoints").glob("best-*")
    shutil.rmtree(kept)
    with pytest.raises(ValueError, match=r"best-\*: found no checkpoint, expected the weights of step \d"):
        run(tmp_path, BestWeights(mode="max"), resume=True)


@pytest.mark.parametrize("average_first", [True, False])
def test_the_best_of_an_average_is_the_average(average_first: bool, tmp_path: Path) -> None:
    watch, both = Watch(), [EMA(decay=0.5), BestWeights(mode="max")]
    run(tmp_path, *(both if average_first else both[::-1]), watch)
    best = record(tmp_path)["settings"]["best"]["step"]
    handed = load_file(tmp_path / "weights" / "model.safetensors")
    assert all(torch.equal(handed[name], watch.seen[best][name]) for name in handed)
    assert losses(tmp_path, "val/loss")[best - 1][1] == pytest.approx(by_hand(handed), rel=1e-5)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_ranks_find_the_same_loss_and_the_same_best(strategy: str, tmp_path: Path) -> None:
    """Seven samples: one of them is read by both ranks."""
    run(tmp_path / "one", BestWeights(mode="max"))

    def work(rank: int) -> None:
        run(tmp_path / "two", BestWeights(mode="max"), devices=2, strategy=STRATEGIES[strategy]())

    on_two_ranks(work)
    one, two = (losses(tmp_path / name, "val/loss") for name in ("one", "two"))
    assert [value for _, value in two] == pytest.approx([value for _, value in one], rel=1e-3)
    assert two[0][1] == pytest.approx(one[0][1], rel=1e-6)
    assert record(tmp_path / "two")["settings"]["best"]["step"] == record(tmp_path / "one")["settings"]["best"]["step"]
    handed = [load_file(tmp_path / name / "weights" / "model.safetensors") for name in ("one", "two")]
    for name, tensor in handed[0].items():
        torch.testing.assert_close(handed[1][name], tensor, rtol=0, atol=1e-4)


def test_what_cannot_decide_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"found BestWeights and no data.val, expected sets that decide"):
        run(tmp_path, BestWeights(), val={})
    wrong: tuple[Any, ...] = (
        BestWeights("val/los"),
        EarlyStopping("val/los"),
        ModelCheckpoint(monitor="val/los", dirpath=tmp_path),
    )
    for each in wrong:
        found = rf"^trainer.callbacks: found {type(each).__name__} of 'val/los'"
        with pytest.raises(ValueError, match=rf"{found}, expected one of train/loss, val/loss \(did you mean"):
            run(tmp_path, each)
    assert not (tmp_path / "metrics.csv").exists(), "before a step was taken"
    run(tmp_path, EarlyStopping("train/loss"), EarlyStopping("val/loss", patience=STEPS))
    with pytest.raises(ValueError, match=r"BestWeights.mode: found 'least', expected min or max"):
        BestWeights(mode="least")  # type: ignore[arg-type]


def test_a_test_may_ask_for_the_loss_and_its_blind_twin(tmp_path: Path) -> None:
    module = run(tmp_path)
    data = ToyData(processor=module.processor)
    data.test = held_out()
    found = trainer(tmp_path, logger=False, callbacks=[]).test(module, datamodule=data, verbose=False)
    scores = {name: value for each in found for name, value in each.items()}
    assert {"test/loss", "test/loss_blind"} <= set(scores)
    assert json.loads((tmp_path / "test.json").read_text())["samples"] == {"loss": 7, "loss_blind": 7}


class Scores(Callback):
    """Logs `val/own`, one value after another."""

    def __init__(self, *values: float) -> None:
        self.values = values

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        pl_module.log("val/own", self.values[trainer.global_step - 1])


@pytest.mark.fault
def test_a_score_that_is_no_number_is_never_the_best_and_ends_no_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault_row: Callable[[str, str, str], None]
) -> None:
    monkeypatch.setattr(Toy, "monitored", (*Toy.monitored, "val/own"))
    nan, inf = float("nan"), float("inf")
    cases: list[tuple[Any, tuple[float, ...], int]] = [
        ("min", (nan, 3.0, -inf, 2.0, nan, 2.5), 4),
        ("max", (inf, 3.0, nan, 2.0, inf, 3.5), 6),
        ("min", (nan,) * 6, 0),
    ]
    for number, (mode, values, expected) in enumerate(cases):
        folder, best = tmp_path / str(number), BestWeights("val/own", mode)
        run(folder, Scores(*values), best)
        facts = json.loads((folder / "weights" / "stage.json").read_text())
        found = facts["settings"]["best"]
        assert best.step == expected == (found["step"] if found else 0) and facts["steps"] == STEPS
    with pytest.raises(ValueError, match=r"found val/own = nan after step 2, .*so the stage is not done"):
        run(tmp_path / "ends", Scores(3.0, nan), EarlyStopping("val/own"))
    assert not (tmp_path / "ends" / "weights").exists()
    run(tmp_path / "goes on", Scores(3.0, nan, nan, 2.0, 2.0, 2.0), EarlyStopping("val/own", check_finite=False))
    fault_row("T8", "5 of 5", "scores that are no number: never the best, never the end of a stage")
