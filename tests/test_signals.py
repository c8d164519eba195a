"""A first signal is raised or noted, a second one ends the process, and what a loader forks is left out of it."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from lightning_mllm import signals
from lightning_mllm.cli import VERBS, main
from tests.training.callbacks.signalled import code_of, forked


def ends(work: Callable[[], object], tmp_path: Path) -> tuple[int, str]:
    """The exit code of a process that does `work`, and what it says."""
    log = tmp_path / "log"
    return code_of(forked(work, log), 20), log.read_text()


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGUSR1", 138), ("SIGHUP", 129)])
def test_before_training_a_signal_ends_a_command(
    name: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(getattr(signal, name))
    monkeypatch.setitem(VERBS, "run", lambda _: signal.raise_signal(getattr(signal, name)))
    with pytest.raises(SystemExit) as stopped:
        main(["run"])
    assert stopped.value.code == code and capsys.readouterr().err == f"mllm: stopped by {name}\n"
    assert signal.getsignal(getattr(signal, name)) is before


def test_what_is_held_is_raised_when_it_is_released() -> None:
    with suppress(signals.Stopped), signals.installed():
        signals.hold()
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGTERM)  # at once: the same
        assert signals.received() == signal.SIGUSR1
        with pytest.raises(signals.Stopped) as stopped:
            signals.release()
        assert stopped.value.name == "SIGUSR1"
        signals.release()  # once
    assert signals.received() == 0


def test_a_second_signal_ends_a_process_that_is_in_a_library(tmp_path: Path) -> None:
    def work() -> None:
        with signals.installed():
            signals.hold()
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
            threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
            # As a wait for another rank: no handler is called before it is over.
            library = ctypes.CDLL(None)
            while True:
                library.sleep(15)

    began = time.monotonic()
    code, said = ends(work, tmp_path)
    assert (code, said) == (143, "mllm: SIGTERM again; ended at once\n") and time.monotonic() - began < 10


@pytest.mark.parametrize(("second", "code"), [("SIGTERM", 0), ("SIGUSR1", 138)])
def test_what_follows_a_notice_is_the_end_that_it_announced(second: str, code: int, tmp_path: Path) -> None:
    def work() -> None:
        with suppress(signals.Stopped), signals.installed():
            signals.hold()
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.7)
            os.kill(os.getpid(), getattr(signal, second))
            time.sleep(0.3)
            assert signals.received() == signal.SIGUSR1

    assert ends(work, tmp_path)[0] == code


def test_a_forked_process_ends_by_its_parent_alone(tmp_path: Path) -> None:
    def work() -> None:
        ready, done = os.pipe()
        with signals.installed():
            if (child := os.fork()) == 0:
                for name in ("SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGTERM"):
                    os.kill(os.getpid(), getattr(signal, name))
                time.sleep(0.1)
                os.write(done, b"1")
                time.sleep(20)
            assert os.read(ready, 1) == b"1" and signals.received() == 0
            os.kill(child, signal.SIGTERM)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    assert ends(work, tmp_path) == (0, "")


class Hides:
    """Of a signal in `__set_name__` Python makes a RuntimeError."""

    def __set_name__(self, owner: type, name: str) -> None:
        signal.raise_signal(signal.SIGTERM)


def test_a_signal_that_is_hidden_ends_a_command_all_the_same() -> None:
    def replaced() -> None:
        type("Owner", (), {"one": Hides()})

    def swallowed() -> None:
        with suppress(BaseException):
            signal.raise_signal(signal.SIGTERM)

    for work in (replaced, swallowed):
        with pytest.raises(SystemExit) as stopped, signals.installed():
            work()
        assert stopped.value.code == 143
    with pytest.raises(ValueError, match="own"), signals.installed():
        signals.hold()
        signal.raise_signal(signal.SIGTERM)
        raise ValueError("own")


def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.installed():
            signal.raise_signal(signal.SIGHUP)
            assert signals.received() == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_other_threads_leave_signals_as_they_are() -> None:
    handlers: list[object] = []

    def work() -> None:
        with signals.installed():
            handlers.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [before]
