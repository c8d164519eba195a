"""Whatever is raised in a step: its samples are named, the step before it is saved, and nothing is learned twice."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback

from lightning_mllm.collectives import AgreedError
from lightning_mllm.training.callbacks.averaging import EMA
from lightning_mllm.training.callbacks.failed_step import FailedStep
from lightning_mllm.training.callbacks.signals import StageSignals
from lightning_mllm.training.skipped_steps import SkipLimits
from tests.distributed.ranks import on_two_ranks
from tests.toy import Toy, ToyLanguage, ToyProcessor
from tests.training.runs import fit, losses, saved, saved_tensors

FULL = bool(os.environ.get("MLLM_FULL"))
STEPS = 6


class Raised(Exception):
    """A mistake in somebody's code."""


def wrong() -> None:
    raise Raised("found what nobody expected")


def memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


class Fails(Callback):
    """Raises in micro-batch `batch` of the run, once."""

    def __init__(self, where: str, batch: int, act: Callable[[], None] = wrong, micro: int = 2) -> None:
        self.where, self.batch, self.act, self.micro = where, batch, act, micro
        self.now, self.done = -1, False

    def at(self, where: str) -> None:
        if self.where == where and self.now == self.batch and not self.done:
            self.done = True
            self.act()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.now = batch_idx
        self.at("a callback before the batch")

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        torch.rand(3)
        self.at("a callback after backward")

    def on_before_optimizer_step(self, *given: Any) -> None:
        self.at("a callback before the update")

    def on_train_batch_end(self, *given: Any) -> None:
        self.at("a callback behind the batch")

    def on_validation_batch_end(self, *given: Any) -> None:
        self.at("the validation")

    @contextmanager
    def __call__(self) -> Iterator[None]:
        encode, collate, forward, step = (
            ToyProcessor.encode,
            ToyProcessor.collate,
            Toy.training_step,
            torch.optim.AdamW.step,
        )
        seen, own = [0], self.micro * (self.batch + 1)

        def encoded(processor: Any, sample: Any, **more: Any) -> Any:
            seen[0] += not more.get("generate")  # those to train on
            if self.where == "encode" and seen[0] == own and not self.done:
                self.done = True
                self.act()
            return encode(processor, sample, **more)

        def collated(processor: Any, rows: Any, **more: Any) -> Any:
            if self.where == "collate" and more["padding"] == "right" and seen[0] == own and not self.done:
                self.done = True
                self.act()
            return collate(processor, rows, **more)

        def trained(module: Any, batch: Any, batch_idx: int) -> Any:
            self.at("forward")
            loss = forward(module, batch, batch_idx)
            if self.where == "backward" and self.now == self.batch:
                loss.register_hook(lambda gradient: self.at("backward"))
            return loss

        def stepped(optimizer: Any, closure: Any = None) -> Any:
            def closed() -> Any:
                found = closure()
                self.at("the optimizer before its update")
                return found

            found = step(optimizer, closed)
            self.at("the optimizer inside its update")
            return found

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ToyProcessor, "encode", encoded)
            patch.setattr(ToyProcessor, "collate", collated)
            patch.setattr(Toy, "training_step", trained)
            patch.setattr(torch.optim.AdamW, "step", stepped)
            yield


def run(folder: Path, *callbacks: Any, every: int = 100, resume: bool = False, micro: int = 2, **more: Any) -> Toy:
    data = {"steps": STEPS, "micro_batch": micro, "samples": 12}
    given = [EMA(decay=0.5), StageSignals(), *callbacks, FailedStep()]
    more = {"dropout": 0.3, "limit_val_batches": 1, "val_check_interval": 2 * 4 // micro, **more}
    return fit(folder, data=data, callbacks=given, every_n_steps=every, resume=resume, **more)


@pytest.fixture(scope="module", params=[2, 4] if FULL else [2])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    folder = tmp_path_factory.mktemp("whole")
    with Fails("", 0)():
        run(folder, Fails("", 0), micro=request.param)
    return request.param, folder


WHOLE = ["a callback behind the batch", "the validation"]
"""Behind the update."""
PLACES = [
    "forward", "backward", "encode", "collate", "a callback before the batch", "a callback after backward",
    "a callback before the update", "the optimizer before its update", *WHOLE,
]  # fmt: skip
SOME = ["backward", "collate", "the optimizer before its update", "the validation"]


@pytest.mark.fault
@pytest.mark.parametrize("place", PLACES if FULL else SOME)
def test_the_step_before_is_saved_and_the_run_goes_on_as_if_nothing_had_been(
    place: str, whole: tuple[int, Path], tmp_path: Path, fault_row: Callable[[str, str, str], None]
) -> None:
    micro, reference = whole
    each = 4 // micro
    # Behind some micro-batches alone there is an update, or a validation.
    own = 2 * each if place == "the validation" else each if "update" in place or place in WHOLE else 1
    batches = [k for k in range(each, STEPS * each) if (k + 1) % own == 0]
    batches = batches if FULL else batches[1::5][:1]
    fault_row("T9", f"{len(batches)} of {len(batches)}", f"errors in {place}, micro_batch {micro}: the same bits")
    for batch in batches:
        folder, fails = tmp_path / str(batch), Fails(place, batch, micro=micro)
        with fails(), pytest.raises(Raised) as error:
            run(folder, fails, micro=micro)
        step = (batch + 1) // each if place in WHOLE else batch // each
        notes = "\n".join(error.value.__notes__)
        assert saved(folder)["global_step"] == step and f"goes on after step {step}, from" in notes, notes
        if place == "the validation":
            assert f"in the validation after optimizer step {step}" in notes
        else:
            of = f", micro-batch {batch % each + 1} of {each}" if each > 1 else ""
            assert re.search(rf"in optimizer step {batch // each + 1}{of}, samples: .*squares\[\d+\]", notes), notes
            assert len(re.findall(r"squares\[\d+\]", notes)) == micro
        with Fails("", 0)():
            run(folder, Fails("", 0), micro=micro, resume=True)
        found, expected = saved_tensors(folder), saved_tensors(reference)
        assert found.keys() == expected.keys()
        assert [name for name in found if not torch.equal(found[name], expected[name])] == [], (place, batch)
        assert losses(folder) == losses(reference)
        assert losses(folder, "val/exact_match") == losses(reference, "val/exact_match")


@pytest.mark.fault
def test_other_errors(tmp_path: Path, fault_row: Callable[[str, str, str], None]) -> None:
    """Memory that runs out; an update that is half done; an error before there is anything to save; one in a resumed
    run before its first step.
    """
    for number, batch in enumerate((4, 7)):
        folder, fails = tmp_path / f"memory {number}", Fails("forward", batch, memory)
        with fails(), pytest.raises(torch.OutOfMemoryError) as error:
            run(folder, fails)
        assert saved(folder)["global_step"] == batch // 2 and "samples: 's" in error.value.__notes__[0]
    folder, fails = tmp_path / "half", Fails("the optimizer inside its update", 5)
    with fails(), pytest.raises(Raised) as error:
        run(folder, fails, every=2)
    assert saved(folder)["global_step"] == 2, "the checkpoint before"
    assert "step 2 could not be saved" not in "".join(error.value.__notes__)
    fails = Fails("the optimizer inside its update", 7)
    with fails(), pytest.raises(Raised) as error:
        run(folder, fails, every=2, resume=True)
    assert "step 3 could not be saved: the error came inside the optimizer's update" in "".join(error.value.__notes__)
    fails = Fails("backward", 4)
    with fails(), pytest.raises(Raised) as error:
        run(folder, fails, every=2, resume=True)
    assert saved(folder)["global_step"] == 2
    fails = Fails("encode", 0)
    with fails(), pytest.raises(Raised) as error:
        run(tmp_path / "first", fails)
    notes = error.value.__notes__
    assert notes[0].startswith("made of sample ") and notes[1].startswith("in optimizer step 1, micro-batch 1 of 2")
    assert notes[2].endswith("there is no checkpoint, and the same command begins anew")
    fault_row("T9", "6 of 6", "memory that runs out, half an update, the first step, a resumed run")


def test_two_ranks_save_what_both_of_them_know(tmp_path: Path) -> None:
    """Too many skipped steps end both, and the last step of both is saved; a higher limit goes on from it."""

    def work(rank: int) -> list[str]:
        class Spoils(Callback):
            def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
                if trainer.global_step in (2, 3, 4) and rank:
                    pl_module.net.connector.weight.grad[0, 0] = float("nan")

        def build(stage: Any) -> Toy:
            module = Toy(language=ToyLanguage(dropout=0.3), stage=stage)
            module.skipped.limits = limits
            return module

        two: dict[str, Any] = {"devices": 2, "strategy": "ddp", "micro": 1, "limit_val_batches": 0, "build": build}
        limits = SkipLimits(in_a_row=3)
        with pytest.raises(AgreedError, match="3 steps in a row had") as error:
            run(tmp_path, Spoils(), **two)
        assert saved(tmp_path)["global_step"] == 4, "both waited for it"
        torch.distributed.barrier()
        limits = SkipLimits(in_a_row=4)
        assert run(tmp_path, Spoils(), resume=True, **two).skipped.total == 3
        return error.value.__notes__

    for rank, notes in enumerate(on_two_ranks(work)):
        assert notes[0].startswith(f"rank {rank}, in optimizer step 5, micro-batch 2 of 2, samples: 's"), notes
    assert [step for step, _ in losses(tmp_path)] == list(range(1, STEPS + 1))


def test_what_fails_behind_the_last_step_is_of_no_sample(tmp_path: Path) -> None:
    class Ends(Callback):
        def on_train_end(self, *given: Any) -> None:
            wrong()

    with pytest.raises(Raised) as error:
        run(tmp_path, Ends())
    (note,) = error.value.__notes__
    assert f"the same command goes on after step {STEPS}" in note
