"""Ranks of one run that are signalled alone or together, or killed: none waits for another, and the run goes on."""

from __future__ import annotations

import os
import random
import signal
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lightning_mllm.cli import main
from tests.training.callbacks.signalled import STAGE, code_of, forked
from tests.training.callbacks.test_signals import FULL, VALIDATED, before_micro_batch, checkpoints, in_validation, same

KILLS = 10

STRATEGIES = {
    "ddp": "--trainer.strategy={class_path: lightning.pytorch.strategies.DDPStrategy, init_args: "
    "{process_group_backend: gloo}}",
    "fsdp2": "--trainer.strategy={class_path: lightning_mllm.training.sharding.ShardedStrategy}",
}
RANKED = (*STAGE, "--hardware.micro_batch=1", "--trainer.devices=2", "--trainer.accelerator=cpu")
"""Twelve micro-batches of each rank, three an optimizer step."""


def started(run: Path, *more: str, before: Sequence[Callable[[], object] | None] = (None, None)) -> list[int]:
    """The ids of the two ranks of a training, as torchrun starts them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def work(rank: int) -> None:
        torch.set_num_threads(1)
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE="2",
            LOCAL_WORLD_SIZE="2",
            GROUP_RANK="0",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
            TORCHELASTIC_RUN_ID="test",
        )
        rank_zero_only.rank = rank  # read from the environment when the library is imported
        if (prepare := before[rank]) is not None:
            prepare()
        main(["fit", *RANKED, f"--run_dir={run}", *more])

    return [forked(lambda rank=rank: work(rank), run.with_suffix(".log")) for rank in range(2)]


def codes(run: Path, *more: str, before: Sequence[Callable[[], object] | None] = (None, None)) -> list[int]:
    return [code_of(pid) for pid in started(run, *more, before=before)]


def strategy_name(option: str) -> str:
    return next(name for name, given in STRATEGIES.items() if given == option)


def sent(name: str) -> Callable[[], None]:
    return lambda: signal.raise_signal(getattr(signal, name))


@pytest.fixture(scope="module", params=STRATEGIES)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder, strategy = tmp_path_factory.mktemp("whole"), STRATEGIES[request.param]
    assert codes(folder / "run", strategy, *VALIDATED) == [0, 0]
    return strategy, folder / "run"


CASES = {
    "SIGTERM of rank 1": (1, before_micro_batch(1, sent("SIGTERM")), 143, 1),
    "SIGTERM of rank 0": (0, before_micro_batch(5, sent("SIGTERM")), 143, 2),
    "SIGINT of rank 1": (1, before_micro_batch(9, sent("SIGINT")), 130, 4),
    "SIGUSR1 of rank 0": (0, before_micro_batch(11, sent("SIGUSR1")), 138, 4),
    "SIGTERM of rank 1 in a validation": (1, in_validation("SIGTERM"), 143, 2),
}
"""Case -> the rank, how it gets the signal, the exit code of both, the step that is saved."""


def stopped(run: Path, strategy: str, case: str) -> None:
    rank, prepare, code, step = CASES[case]
    before: list[Callable[[], object] | None] = [None, None]
    before[rank] = prepare
    began = time.monotonic()
    assert codes(run, strategy, *VALIDATED, "--checkpoint_every=100", before=before) == [code, code]
    assert checkpoints(run)[-1] == f"step-{step}" and time.monotonic() - began < 60
    told = run.with_suffix(".log").read_text()
    assert told.count(f" ended the training after step {step}; the same command goes on after step {step}") == 1


@pytest.mark.fault
def test_one_rank_alone_ends_both(tmp_path: Path, fault_row) -> None:
    stopped(tmp_path / "run", STRATEGIES["ddp"], "SIGTERM of rank 1 in a validation")
    fault_row("T3", "1 of 1", "one of two ranks signalled: both end with its code")


@pytest.mark.fault
@pytest.mark.skipif(not FULL, reason="make test-faults")
def test_one_rank_alone_is_signalled(whole: tuple[str, Path], tmp_path: Path, fault_row) -> None:
    strategy, reference = whole
    for case in CASES:
        run = tmp_path / case.replace(" ", "-")
        stopped(run, strategy, case)
        assert codes(run, strategy, *VALIDATED) == [0, 0] and same(run, reference)
    fault_row(
        "T3", f"{len(CASES)} of {len(CASES)}", f"one of two ranks signalled, {strategy_name(strategy)}: same bits"
    )


@pytest.mark.fault
@pytest.mark.skipif(not FULL, reason="make test-faults")
def test_both_ranks_are_signalled(whole: tuple[str, Path], tmp_path: Path, fault_row) -> None:
    """At different micro-batches, and by different signals."""
    strategy, reference = whole
    for number, (first, second) in enumerate([(4, 4), (3, 5), (2, 3)]):
        run = tmp_path / str(number)
        before = [before_micro_batch(first, sent("SIGINT")), before_micro_batch(second, sent("SIGTERM"))]
        found = codes(run, strategy, *VALIDATED, "--checkpoint_every=100", before=before)
        assert found in ([143, 143], [130, 130]) and checkpoints(run)
        assert codes(run, strategy, *VALIDATED) == [0, 0] and same(run, reference)
    fault_row("T3", "3 of 3", f"both ranks signalled, {strategy_name(strategy)}: same bits")


@pytest.mark.fault
@pytest.mark.skipif(not FULL, reason="make test-faults")
def test_a_rank_is_killed(whole: tuple[str, Path], tmp_path: Path, fault_row) -> None:
    strategy, reference = whole
    random.seed(1)
    longest = 0.0
    for kills in range(KILLS):
        run = tmp_path / f"run-{kills}"
        rank, index = random.randrange(2), random.randrange(12)
        before: list[Callable[[], object] | None] = [None, None]
        before[rank] = before_micro_batch(index, lambda: os.kill(os.getpid(), signal.SIGKILL))
        pids = started(run, strategy, *VALIDATED, "--checkpoint_every=1", before=before)
        assert code_of(pids[rank]) == -signal.SIGKILL
        began = time.monotonic()
        assert code_of(pids[1 - rank]) not in (0, -signal.SIGKILL)
        longest = max(longest, time.monotonic() - began)
        assert codes(run, strategy, *VALIDATED) == [0, 0] and same(run, reference)
    fault_row("T11", f"{KILLS} of {KILLS}", f"a killed rank: the other one ends within {longest:.1f} s; same bits")
    assert longest < 60
