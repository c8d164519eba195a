"""A loss or a gradient that is no number changes no weight, and no file holds one."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from lightning.pytorch.callbacks import Checkpoint

from lightning_mllm.training.callbacks.averaging import EMA, LAWA, SWA
from lightning_mllm.training.skipped_steps import FILE, SkipLimits
from tests.distributed.ranks import on_two_ranks
from tests.toy import Toy
from tests.training.runs import fit, last, losses, saved, saved_tensors, settings, weights

FULL = bool(os.environ.get("MLLM_FULL"))
STEPS = 8


class Spoils(Callback):
    """Makes the loss of one row, or a number of the gradient, of some steps `value`."""

    def __init__(self, value: float, steps: tuple[int, ...], where: str = "loss", micro_batch: int = 0) -> None:
        self.value, self.steps, self.where, self.micro_batch = value, steps, where, micro_batch
        self.spoils = False

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        within = batch_idx % trainer.accumulate_grad_batches
        self.spoils = trainer.global_step + 1 in self.steps and within == self.micro_batch

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        if self.spoils and self.where == "gradient":
            pl_module.net.language.head.weight.grad[5, 5] = self.value

    @contextmanager
    def __call__(self) -> Iterator[None]:
        forward = Toy.forward

        def spoilt(module: Any, batch: Any) -> Any:
            output = forward(module, batch)
            if self.spoils and self.where == "loss":
                wrong = torch.zeros_like(output.terms["language"].losses)
                wrong[-1] = self.value
                output.terms["language"].losses = output.terms["language"].losses + wrong
            if self.spoils and self.where == "gradient of the net":
                # A square root of 0, whose slope is infinite.
                output.terms["language"].losses = output.terms["language"].losses + (
                    (output.terms["language"].losses * 0).sqrt()
                )
            return output

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Toy, "forward", spoilt)
            yield


def run(folder: Path, spoils: Spoils, limits: SkipLimits | None = None, **arguments: Any) -> Any:
    def build(stage: Any) -> Any:
        from tests.toy import ToyLanguage

        module = Toy(language=ToyLanguage(dropout=0.2), stage=stage)
        module.skipped.limits = limits or SkipLimits()
        return module

    data = {"steps": STEPS, "micro_batch": 2, **arguments.pop("data", {})}
    callbacks = [spoils, *arguments.pop("callbacks", [])]
    with spoils():
        return fit(folder, build=build, data=data, callbacks=callbacks, **arguments)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / FILE).read_text().splitlines()]


KINDS = [
    ("loss", math.nan), ("loss", math.inf), ("loss", -math.inf),
    ("gradient", math.nan), ("gradient", math.inf), ("gradient", -math.inf), ("gradient of the net", math.nan),
]  # fmt: skip


class Look(Callback):
    """Keeps what the optimizer changes, after each step."""

    def __init__(self) -> None:
        self.after: dict[int, torch.Tensor] = {}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
        moments = [state["exp_avg"] for state in trainer.optimizers[0].state.values()]
        trained = [parameter for parameter in pl_module.parameters() if parameter.requires_grad]
        self.after[trainer.global_step] = torch.cat([each.detach().flatten() for each in (*moments, *trained)])


@pytest.mark.fault
def test_a_spoilt_step_changes_nothing_is_counted_and_its_samples_are_listed(
    tmp_path: Path, fault_row: Callable[[str, str, str], None]
) -> None:
    """The first step of all, one in the middle and the last one, in the first or the second micro-batch."""
    kinds = [(*each, clip) for each in KINDS for clip in (0.0, 0.1)]
    kinds = kinds if FULL else kinds[::5]
    fault_row("T8", f"{len(kinds)} of {len(kinds)}", "kinds of NaN and infinity: skipped, no file holds one")
    for number, (where, value, clip) in enumerate(kinds):
        spoils, look, folder = Spoils(value, (1, 5, STEPS), where, number % 2), Look(), tmp_path / str(number)
        module = run(folder, spoils, stage=settings(gradient_clip=clip), callbacks=[look])
        assert module.skipped.total == 3
        same = [step for step in range(2, STEPS + 1) if torch.equal(look.after[step], look.after[step - 1])]
        assert same == [5, STEPS] and len(look.after[1]) == len(look.after[STEPS]) // 2, "no moments after step 1"
        found = lines(folder)
        assert [line["step"] for line in found] == [1, 5, STEPS]
        assert [count for _, count in losses(folder, "train/skipped")] == [1, 1, 1, 1, 2, 2, 2, 3]
        for line in found:
            assert len(line["samples"]) == 4 and {"id", "source", "index", "where"} < line["samples"][0].keys()
            wrong = [k for k, sample in enumerate(line["samples"]) if not sample["finite"]]
            assert wrong == ([2 * spoils.micro_batch + 1] if where == "loss" else [])
        rates = dict(losses(folder, "train/lr"))
        assert rates[6] < rates[5] < rates[4], "the schedule goes on"
        assert all(tensor.isfinite().all() for tensor in (*saved_tensors(folder).values(), *weights(module).values()))
        assert json.loads((folder / "weights" / "stage.json").read_text())["settings"]["skipped_steps"] == 3


class Stopped(Exception): ...


class StopAfter(Checkpoint):
    """Ends the run behind a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
        if trainer.global_step == self.step:
            raise Stopped


@pytest.mark.fault
@pytest.mark.parametrize("micro", [4, 2] if FULL else [2])
def test_a_resume_after_skipped_steps_is_that_of_a_run_without_a_stop(
    tmp_path: Path, micro: int, fault_row: Callable[[str, str, str], None]
) -> None:
    spoils, data, stops = Spoils(math.nan, (2, 3, 6)), {"micro_batch": micro}, range(1, STEPS) if FULL else (2, 5)
    fault_row("T8", f"{len(stops)} of {len(stops)}", f"resumes behind skipped steps, micro_batch {micro}")
    whole = run(tmp_path / "whole", spoils, data=data, callbacks=[EMA(decay=0.5)])
    expected = saved_tensors(tmp_path / "whole")
    for stop in stops:
        folder = tmp_path / str(stop)
        with pytest.raises(Stopped):
            run(folder, spoils, data=data, callbacks=[EMA(decay=0.5), StopAfter(stop)])
        with open(folder / FILE, "a") as file:
            file.write('{"step": 99, "loss": "nan", "samples": []}\n{"step": 99, "lo')
        again = run(folder, spoils, data=data, callbacks=[EMA(decay=0.5)], resume=True)
        assert again.skipped.total == whole.skipped.total == 3
        kept = saved_tensors(folder)
        assert kept.keys() == expected.keys() and all(torch.equal(kept[name], expected[name]) for name in kept)
        assert str(losses(folder)) == str(losses(tmp_path / "whole"))
        assert lines(folder) == lines(tmp_path / "whole")


def test_too_many_end_the_training_and_leave_a_good_checkpoint(tmp_path: Path) -> None:
    few = SkipLimits(in_a_row=3, share=1.0)
    with pytest.raises(ValueError, match=r"^optimizer step 5: found a loss of nan .*3 steps in a row had.*in_a_row"):
        run(tmp_path / "row", Spoils(math.nan, (3, 4, 5)), few)
    assert all(tensor.isfinite().all() for tensor in saved_tensors(tmp_path / "row").values())
    assert not (tmp_path / "row" / "weights").exists() and saved(tmp_path / "row")["global_step"] == 4
    assert run(tmp_path / "apart", Spoils(math.nan, (2, 3, 5, 6, 8)), few).skipped.total == 5
    # The same command goes on where it ended, under a higher limit.
    more = SkipLimits(in_a_row=4, share=1.0)
    assert run(tmp_path / "row", Spoils(math.nan, (3, 4, 5)), more, resume=True).skipped.total == 3
    share = SkipLimits(in_a_row=2, share=0.25)
    with pytest.raises(ValueError, match=r"step 6: .* 3 of 8 steps had, expected at most 2 \(skipped_steps.share"):
        run(tmp_path / "share", Spoils(math.nan, (2, 4, 6)), share)
    assert saved(tmp_path / "share")["global_step"] == 5


def test_limits_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"skipped_steps\.in_a_row: found 0, expected at least 1"):
        SkipLimits(in_a_row=0)
    for share in (-0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match=r"skipped_steps\.share: found .*, expected a share from 0 to 1"):
            SkipLimits(share=share)
    assert [SkipLimits().most(steps) for steps in (5, 900, 100_000)] == [9, 9, 1000]


@pytest.mark.parametrize("kind", [EMA, SWA, LAWA])
def test_an_average_takes_no_weights_twice(tmp_path: Path, kind: Any) -> None:
    """Updates are due after steps 2, 4, 6 and 8. That of 4, which is skipped, takes the weights of 3; that of 6 would
    take them again, for 5 and 6 are skipped.
    """
    taken: list[int] = []

    class Noted(kind):
        def update(self, given: Any) -> None:
            super().update(given)
            taken.append(self._step)

    average = Noted(update_every_n_steps=2, update_starting_at_step=0)
    run(tmp_path, Spoils(math.nan, (4, 5, 6)), callbacks=[average])
    assert taken == [2, 4, 8] and average.updates == 3
    assert all(average.mean(name).isfinite().all() for name in average.held[0])


def test_one_rank_of_two(tmp_path: Path) -> None:
    """Both skip alike; the list has the samples of both, and says whose loss it was."""

    def work(rank: int) -> Any:
        spoils = Spoils(math.inf, (3,) if rank else ())
        module = run(tmp_path, spoils, data={"micro_batch": 1}, devices=2, strategy="ddp")
        return weights(module) | {"skipped": torch.tensor(module.skipped.total)}

    ranks = on_two_ranks(work)
    assert [int(rank["skipped"]) for rank in ranks] == [1, 1]
    (line,) = lines(tmp_path)
    assert len(line["samples"]) == 4 and [sample["finite"] for sample in line["samples"]].count(False) == 1
    assert all(tensor.isfinite().all() for tensor in saved_tensors(tmp_path).values()) and last(tmp_path)
