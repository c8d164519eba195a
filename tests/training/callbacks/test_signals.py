"""A signal at any micro-batch ends a training behind a saved optimizer step, and the run goes on with the same bits."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lightning_mllm.cli import main
from lightning_mllm.evaluation.scores import Scores
from lightning_mllm.training.callbacks.checkpoint import StageCheckpoint
from lightning_mllm.training.callbacks.record import StageRecord
from lightning_mllm.training.module import MultimodalModule
from tests.training.callbacks.signalled import STAGE, code_of, forked, mllm
from tests.training.runs import losses

FULL = bool(os.environ.get("MLLM_FULL"))
MOMENTS = 40
"""Signals that are sent at random moments."""
POSITIONS = 12
"""Micro-batches of the stage, three of which are an optimizer step."""
RARE = "--checkpoint_every=100"
VALIDATED = (
    "--data.val={squares: {source: {class_path: tests.training.data.Squares, init_args: {samples: 10}}, task: exact}}",
    "--stage.validate_every=2",
)
SCORE = "val/exact_match"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing stops."""
    folder = tmp_path_factory.mktemp("whole")
    assert fit(folder / "run") == 0
    assert [step for step, _ in losses(folder / "run", SCORE)] == [2, 4]
    return folder / "run"


def weights(run: Path) -> dict[str, Tensor]:
    return {
        name: tensor for file in (run / "weights").glob("*.safetensors") for name, tensor in load_file(file).items()
    }


def same(run: Path, whole: Path) -> bool:
    """Whether two runs have the same weights, losses and validations, to the bit."""
    found, expected = weights(run), weights(whole)
    equal = set(found) == set(expected) and all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    return equal and all(losses(run, each) == losses(whole, each) for each in ("train/loss", SCORE))


def checkpoints(run: Path) -> list[str]:
    return sorted(each.name for each in (run / "checkpoints").glob("step-*"))


def before_micro_batch(index: int, send: Callable[[], object]) -> Callable[[], None]:
    """Makes the run of this process `send` there."""

    def prepare() -> None:
        step = MultimodalModule.training_step

        def training_step(self: MultimodalModule, batch, batch_idx: int) -> Tensor:
            if batch_idx == index:
                send()
            return step(self, batch, batch_idx)

        MultimodalModule.training_step = training_step

    return prepare


def in_validation(name: str) -> Callable[[], None]:
    """Makes the run of this process send a signal when the first batch of a validation is scored."""

    def prepare() -> None:
        update = Scores.update

        def updated(self: Scores, batch, answers) -> None:
            signal.raise_signal(getattr(signal, name))
            update(self, batch, answers)

        Scores.update = updated

    return prepare


def fit(run: Path, *more: str, before: Callable[[], object] = lambda: None) -> int:
    return mllm(run.with_suffix(".log"), "fit", *STAGE, *VALIDATED, f"--run_dir={run}", *more, before=before)


def raised(name: str) -> Callable[[], None]:
    return lambda: signal.raise_signal(getattr(signal, name))


def told(run: Path) -> str:
    return run.with_suffix(".log").read_text()


@pytest.mark.fault
@pytest.mark.skipif(not FULL, reason="make test-faults")
def test_a_signal_at_any_micro_batch(whole: Path, tmp_path: Path, fault_row) -> None:
    names = {"SIGTERM": 143, "SIGINT": 130}
    cases = [(name, index) for name in names for index in range(POSITIONS)]
    good = 0
    for name, index in cases:
        run = tmp_path / f"{name}-{index}"
        step = index // 3 + 1
        began = time.monotonic()
        assert fit(run, RARE, before=before_micro_batch(index, raised(name))) == names[name]
        assert time.monotonic() - began < 60
        assert checkpoints(run)[-1] == f"step-{step}" and not (run / "weights").exists()
        assert f"{name} ended the training after step {step}; the same command goes on after step {step}" in told(run)
        assert fit(run) == 0
        good += same(run, whole)
    fault_row("T3", f"{good} of {len(cases)}", "SIGTERM and SIGINT at each micro-batch, accumulation 3: same bits")
    assert good == len(cases)


@pytest.mark.fault
def test_a_run_that_is_signalled_again_and_again(whole: Path, tmp_path: Path, fault_row) -> None:
    """In and before validations too, which are taken by the run that goes on."""
    run = tmp_path / "run"
    chain = [
        (138, before_micro_batch(1, raised("SIGUSR1")), 1),
        (129, in_validation("SIGHUP"), 2),
        (140, before_micro_batch(8, raised("SIGUSR2")), 3),
        (143, before_micro_batch(11, raised("SIGTERM")), 4),
        (130, in_validation("SIGINT"), 4),
    ]
    chain = chain if FULL else chain[1:4:2]
    for code, before, step in chain:
        assert fit(run, RARE, before=before) == code
        assert checkpoints(run)[-1] == f"step-{step}" and not (run / "weights").exists()
    assert fit(run) == 0
    assert same(run, whole)
    fault_row("T3", f"{len(chain)} of {len(chain)}", "signals in one run, in and before validations too: same bits")


@pytest.mark.fault
def test_a_second_signal_ends_at_once(whole: Path, tmp_path: Path, fault_row) -> None:
    """While the first one waits for a micro-batch that never ends, in Python or in a library."""
    cases = [("SIGTERM", "SIGTERM", 143), ("SIGINT", "SIGINT", 130), ("SIGINT", "SIGTERM", 143)]
    for first, second, code in cases if FULL else cases[:1]:
        run = tmp_path / f"{first}-{second}"

        def work(run: Path = run) -> None:
            before_micro_batch(7, lambda: ((run / "waits").touch(), time.sleep(30)))()
            main(["fit", *STAGE, *VALIDATED, f"--run_dir={run}", "--checkpoint_every=1"])

        pid = forked(work, run.with_suffix(".log"))
        while not (run / "waits").exists():
            time.sleep(0.05)
        os.kill(pid, getattr(signal, first))
        time.sleep(0.8)
        began = time.monotonic()
        os.kill(pid, getattr(signal, second))
        assert code_of(pid) == code
        assert time.monotonic() - began < 2
        assert checkpoints(run)[-1] == "step-2"
        assert not FULL or (fit(run) == 0 and same(run, whole))
    fault_row("T3", f"{len(cases) if FULL else 1} of {len(cases) if FULL else 1}", "signalled twice: ended within 2 s")


@pytest.mark.skipif(not FULL, reason="make test-faults")
def test_a_signal_behind_the_last_step_finishes_the_stage(whole: Path, tmp_path: Path) -> None:
    def prepare() -> None:
        end = StageRecord.on_train_end

        def on_train_end(self: StageRecord, trainer, pl_module) -> None:
            signal.raise_signal(signal.SIGTERM)
            end(self, trainer, pl_module)

        StageRecord.on_train_end = on_train_end

    run = tmp_path / "run"
    assert fit(run, before=prepare) == 143
    assert "mllm: stopped by SIGTERM" in told(run) and same(run, whole)


@pytest.mark.skipif(not FULL, reason="make test-faults")
def test_a_signal_while_a_checkpoint_is_written(whole: Path, tmp_path: Path) -> None:
    def prepare() -> None:
        save = StageCheckpoint.save

        def saved(self: StageCheckpoint, trainer) -> None:
            signal.raise_signal(signal.SIGTERM)
            save(self, trainer)

        StageCheckpoint.save = saved

    run = tmp_path / "run"
    assert fit(run, "--checkpoint_every=2", before=prepare) == 143
    assert checkpoints(run)[-1] == "step-3"
    assert fit(run) == 0 and same(run, whole)


@pytest.mark.fault
def test_workers_are_signalled_too(whole: Path, tmp_path: Path, fault_row) -> None:
    """As a terminal and schedulers do: all processes of the group, or of the job."""
    names = {"SIGINT": 130, "SIGTERM": 143, "SIGUSR1": 138, "SIGHUP": 129}
    chosen = list(names) if FULL else ["SIGTERM"]
    for name in chosen:
        run = tmp_path / name

        def work(run: Path = run) -> None:
            os.setpgid(0, 0)
            before_micro_batch(4, lambda: ((run / "waits").touch(), time.sleep(1)))()
            main(["fit", *STAGE, *VALIDATED, f"--run_dir={run}", RARE, "--hardware.workers=2"])

        pid = forked(work, run.with_suffix(".log"))
        while not (run / "waits").exists():
            time.sleep(0.05)
        os.killpg(pid, getattr(signal, name))
        assert code_of(pid) == names[name], told(run)
        assert checkpoints(run)[-1] == "step-2" and "Traceback" not in told(run)
        assert not FULL or (fit(run) == 0 and same(run, whole))
    fault_row("T3", f"{len(chosen)} of {len(chosen)}", "the whole process group signalled, two workers: same bits")


@pytest.mark.fault
@pytest.mark.skipif(not FULL, reason="make test-faults")
def test_signals_at_random_moments(whole: Path, tmp_path: Path, fault_row) -> None:
    """From outside: while modules are imported, data are read, weights are made, steps are taken, files are written."""
    random.seed(2)
    codes = {"SIGTERM": 143, "SIGINT": 130, "SIGUSR1": 138, "SIGHUP": 129}
    sent, runs = 0, 0
    while sent < MOMENTS:
        run, runs = tmp_path / str(runs), runs + 1
        ended = -1
        while ended != 0:

            def work(run: Path = run) -> None:
                main(["fit", *STAGE, *VALIDATED, f"--run_dir={run}", RARE])

            name = random.choice(list(codes)) if sent < MOMENTS else ""
            pid = forked(work, run.with_suffix(".log"))
            if name:
                # The handlers are there after some milliseconds.
                time.sleep(random.uniform(0.3, 2.5))
                os.kill(pid, getattr(signal, name))
            ended = code_of(pid)
            sent += ended != 0
            assert ended in (0, codes.get(name, 0)), told(run)
        assert same(run, whole)
    fault_row("T3", f"{sent} of {MOMENTS}", f"signals at random moments of {runs} runs: exit codes and bits")
