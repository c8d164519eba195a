"""A worker that is lost ends the loader in time, names itself and its sample, and leaves no process behind."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from data_modules.loader import Collate, ResumableLoader, SampleLoader, Share, loading
from data_modules.mixture_sampler import MixtureSampler
from data_modules.training_samples import TrainingSamples
from data_modules.workers import ROOM, LostWorker, WorkerSamples
from lightning_mllm.contracts import Sample
from tests.data_modules.files import Echo, Numbers

TIMEOUT = 3
BAD = "b2"


class Located(Numbers):
    def where(self, index: int) -> str:
        return f"b.json: record {index}"


class Fails(Echo):
    """Does something to the worker at one sample."""

    def __init__(self, act: Callable[[], object], at: str = "encode") -> None:
        super().__init__()
        self.act, self.at = act, at

    def encode(self, sample: Sample, *, generate: bool = False, random: Any = None) -> Sample:
        if self.at == "encode" and sample.id == BAD:
            self.act()
        return sample

    def collate(self, rows: Any, *, padding: str = "right") -> Any:
        if self.at == "collate" and any(row.id == BAD for row in rows):
            self.act()
        return super().collate(rows, padding=padding)


class Local(BaseException):
    """No Exception, so that nothing catches it."""


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def crashes() -> None:
    ctypes.string_at(0)


def raises() -> None:
    raise KeyError("what")


def raises_what_cannot_be_pickled() -> None:
    class Unknown(Exception):
        def __init__(self, a: int, b: int) -> None: ...

    raise Unknown(1, 2)


def raises_no_exception() -> None:
    raise Local


def sleeps() -> None:
    time.sleep(1000)


def sleeps_deaf() -> None:
    """Neither SIGTERM nor SIGINT end it."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    while True:
        time.sleep(1000)


def stopped() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


LOST: dict[str, tuple[Callable[[], object], str]] = {
    "is killed": (killed, "was killed by SIGKILL, which is what Linux does where memory runs out"),
    "crashes": (crashes, "was killed by SIGSEGV"),
    "aborts": (os.abort, "was killed by SIGABRT"),
    "leaves": (lambda: os._exit(3), "left with exit code 3"),
    "leaves well": (lambda: os._exit(0), "left with exit code 0"),
    "leaves by sys.exit": (lambda: sys.exit(4), "left with exit code 4"),
    "raises no Exception": (raises_no_exception, "left with exit code 1"),
    "sleeps": (sleeps, rf"sent no batch in {TIMEOUT} s \(hardware.worker_timeout\)"),
    "sleeps, deaf to signals": (sleeps_deaf, "sent no batch in"),
    "is stopped": (stopped, "sent no batch in"),
}
RAISED = {"raises": raises, "raises what cannot be pickled": raises_what_cannot_be_pickled}
FULL = bool(os.environ.get("MLLM_FULL"))
SOME = ("is killed", "leaves", "sleeps, deaf to signals")


def loader(act: Callable[[], object], workers: int, at: str = "encode") -> ResumableLoader:
    sources = {"a": Numbers(7, "a"), "b": Located(4, "b")}
    order = MixtureSampler({name: len(source) for name, source in sources.items()}, seed=5, batch=4)
    processor: Any = Fails(act, at)
    return ResumableLoader(
        TrainingSamples(sources, processor, seed=5),
        [(Share("stage.global_batch", 4, 2), order)],
        collate_fn=Collate(processor, "right"),
        steps=8,
        workers=workers,
        timeout=TIMEOUT,
    )


def children() -> set[int]:
    found = set[int]()
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError):  # of a thread that has just ended
            found.update(map(int, (task / "children").read_text().split()))
    return found


@pytest.mark.fault
@pytest.mark.parametrize("workers", [1, 3] if FULL else [2])
def test_a_lost_worker_is_named_with_its_sample(workers: int, fault_row: Callable[[str, str, str], None]) -> None:
    before = children()
    cases = [(how, at) for how in (LOST if FULL else SOME) for at in (("encode", "collate") if FULL else ("encode",))]
    for how, at in cases:
        act, told = LOST[how]
        started = time.monotonic()
        sample = r"b\.json: record 2 of data\.train\.b" if at == "encode" else r"the batch of samples .*\bb2\b.*"
        with pytest.raises(
            LostWorker,
            match=rf"^data loading worker \d of {workers} \(hardware.workers\) {told}.*; it (is|was) on {sample}$",
        ):
            list(loader(act, workers, at))
        took = time.monotonic() - started
        assert took < TIMEOUT + 2, (how, took)
        assert children() <= before, how
    fault_row(
        "T10",
        f"{len(cases)} of {len(cases)}",
        f"lost workers named with their sample in {TIMEOUT} s, {workers} workers",
    )


@pytest.mark.fault
def test_a_worker_that_raises_names_its_sample(fault_row: Callable[[str, str, str], None]) -> None:
    before = children()
    for at, sample in (
        ("encode", r"b\.json: record 2 of data\.train\.b"),
        ("collate", r"the batch of samples .*\bb2\b"),
    ):
        for act in RAISED.values():
            with pytest.raises(RuntimeError, match=sample):
                list(loader(act, 1, at))
            assert children() <= before
    fault_row("T10", "4 of 4", "errors in a worker name their sample, also one that cannot be pickled")


def test_no_limit_is_no_limit() -> None:
    slow = loader(lambda: time.sleep(0.2), 1)
    slow.__dict__["timeout"] = 0
    assert len(list(slow)) == 16


def test_a_set_that_is_answered_is_watched_too() -> None:
    class Sleepy:
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> int:
            return index

    batches = SampleLoader(Sleepy(), batch_size=2, collate_fn=lambda rows: os._exit(5), **loading(1, TIMEOUT))  # pyright: ignore
    with pytest.raises(LostWorker, match=r"worker 0 of 1 .* left with exit code 5; it was on the first sample"):
        list(batches)


def test_a_worker_ends_with_the_process_that_trains() -> None:
    """One that sleeps has no eyes for it."""
    read, write = os.pipe()
    trains = os.fork()
    if not trains:
        os.setsid()
        iterator = iter(loader(lambda: (os.write(write, b"%d " % os.getpid()), time.sleep(1000)), 1))
        for _ in iterator:
            ...
        os._exit(0)
    worker = int(os.read(read, 20))
    os.kill(trains, signal.SIGKILL)
    os.waitpid(trains, 0)
    end = time.monotonic() + 5
    while time.monotonic() < end and _runs(worker):
        time.sleep(0.05)
    assert not _runs(worker)


def _runs(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_long_and_odd_names_fit() -> None:
    places = WorkerSamples(2)
    places(1)
    try:
        from data_modules import workers

        for name in ("x" * 2000, "ü" * 2000, "\udcff.json: record 3", ""):
            workers.begin(name)
            assert places.of(0) == "" and len(places.of(1).encode()) <= ROOM + 2
        assert places.of(1) == ""
    finally:
        workers._own = None
