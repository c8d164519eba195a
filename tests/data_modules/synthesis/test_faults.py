"""A server that fails in every way costs no answer and brings no false one, also if the generator is killed.

MLLM_FULL=1 asks for 600 answers and kills 30 times; the suite takes fewer of both.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import pytest

pytest.importorskip("openai")

from data_modules.synthesis import journal
from data_modules.synthesis.backends.openai_endpoint import OpenAIEndpoint
from data_modules.synthesis.budget import Budget
from data_modules.synthesis.runner import Limits, run
from tests.data_modules.synthesis.faulty_server import (
    FAULTS,
    KEY,
    LONG,
    STOPS,
    content,
    mended,
    requests,
    served,
    text_of,
)

FULL = bool(os.environ.get("MLLM_FULL"))
COUNT = 600 if FULL else 45
KILLS = 30 if FULL else 2
TIMEOUT, HANG = 1.0, 1.2
"""Seconds: long beside an answer on a busy machine, for one that comes too late was paid for."""
PLAN = {"model": "toy"}
LIMITS = Limits(concurrency=8, retries=5, first_wait=0.002, longest_wait=0.02)


class Said(list[str]):
    """A display that remembers."""

    def show(self, counts: object, spent: str) -> None:
        pass

    def say(self, sentence: str) -> None:
        self.append(sentence)


def generate(folder: Path, url: str, count: int, said: Said) -> str | None:
    """Asks for what is left, as `mllm synthesize` does."""
    asked = content(count)
    with journal.opened(folder, PLAN, asked.requests) as book:
        return run(book, asked, OpenAIEndpoint("toy", url, "TOY_KEY", TIMEOUT), LIMITS, Budget(), said)


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_KEY", KEY)


def check_account(folder: Path, count: int) -> Counter[str]:
    """Every request has ended once: with its own complete answer, or with a reason."""
    states: Counter[str] = Counter()
    asked = requests(count)
    with journal.read(folder) as book:
        outcomes = list(book.outcomes(asked))
    assert [outcome.request.id for outcome in outcomes] == [request.id for request in asked]
    for outcome in outcomes:
        states[outcome.last.state] += 1
        if outcome.last.state == "accepted":
            assert outcome.last.answer is not None and outcome.last.answer.text == text_of(outcome.request.id)
        else:
            assert outcome.last.state == "refused" and outcome.last.reason and outcome.last.answer is None
    for path in folder.iterdir():
        assert KEY.encode() not in path.read_bytes()
    return states


@pytest.mark.fault
def test_every_fault_is_survived(tmp_path: Path, fault_row: Callable[[str, str, str], None]) -> None:
    said, stops = Said(), []
    with served(hang=HANG) as server:
        while (stop := generate(tmp_path, server.url, COUNT, said)) is not None:
            stops.append(stop)
        assert server.most_flying <= LIMITS.concurrency
        assert set(server.faults) == {"none", *FAULTS}
        assert 0 < len(stops) <= sum(server.faults[each] for each in STOPS)
        states, broken = check_account(tmp_path, COUNT), COUNT // 15
        assert states == {"accepted": COUNT - broken, "refused": broken}
        assert all(server.paid[id] == 1 for id in server.paid) and len(server.paid) == COUNT - broken
    print(f"{COUNT} requests: {states}; the server's faults {server.faults}, stops {len(stops)}")
    fault_row("T23", f"{COUNT} of {COUNT}", "requests to a faulty server accounted for, 0 false answers")
    assert not [each for each in (*stops, *said) if KEY in each or "0123456789" in each]
    assert {each.split(":")[0] for each in stops} <= {"status 400", "status 401", "status 429"}
    assert [each for each in said if f"asks to wait {LONG} s; waiting 0.02 s" in each]


def _serve(port: object, fault: object) -> None:
    """A server in a process of its own, so that what is killed shares nothing with it."""
    with served(fault, hang=HANG) as server:  # pyright: ignore[reportArgumentType]
        port.send(server.url)  # pyright: ignore[reportAttributeAccessIssue]
        signal.pause()


def _child(folder: Path, url: str, count: int) -> None:
    os.setsid()
    while generate(folder, url, count, Said()) is not None:
        pass
    (folder / "done").touch()


def _counted(url: str) -> dict:
    with urllib.request.urlopen(f"{url}/counts", timeout=10) as response:
        return json.load(response)


@pytest.mark.fault
def test_a_killed_generator_goes_on(tmp_path: Path, fault_row: Callable[[str, str, str], None]) -> None:
    """Killed at random calls, and by SIGKILL; what was in flight is asked again, and nothing else."""
    own, fork = random.Random(0), get_context("fork")
    here, there = fork.Pipe()
    server = fork.Process(target=_serve, args=(there, mended), daemon=True)
    server.start()
    url, kills, starts = here.recv(), 0, 0
    while not (tmp_path / "done").exists():
        child = fork.Process(target=_child, args=(tmp_path, url, COUNT))
        child.start()
        starts += 1
        until = _counted(url)["asked"] + own.randrange(1, max(2, 2 * COUNT // KILLS // 2))
        while child.is_alive() and (kills >= KILLS or _counted(url)["asked"] < until):
            time.sleep(0.002)
        time.sleep(own.random() * 0.004)
        if child.is_alive():
            assert child.pid is not None
            os.killpg(child.pid, signal.SIGKILL)
            kills += 1
        child.join()
    counted = _counted(url)
    server.terminate()
    server.join()
    twice = sum(counted["paid"].values()) - len(counted["paid"])
    states = check_account(tmp_path, COUNT)
    with journal.read(tmp_path) as book:
        interrupted = book.interrupted
    print(f"{kills} kills, {states}, paid twice {twice}, in flight when killed {interrupted}")
    assert kills >= KILLS and states == {"accepted": COUNT}
    assert len(counted["paid"]) == COUNT
    assert twice <= interrupted <= kills * LIMITS.concurrency
    fault_row("T24", f"{COUNT} of {COUNT}", f"answers after {kills} SIGKILLs, each once; {twice} paid twice")
