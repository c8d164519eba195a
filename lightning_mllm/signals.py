"""What a process does that is told to end: by SIGTERM, by Ctrl-C, or by what schedulers send before they end a job.

    first signal, while a stage trains   it is noted; the optimizer step in progress is finished and saved, then
                                         `Stopped` is raised (training/callbacks/signals.py)
    first signal, at any other time      `Stopped` is raised where the process is
    second signal                        the process ends at once, also where it waits for another rank

Files are whole in all three cases, since they get their names when they are complete. The exit code is 128 + number of
the signal: 143 of SIGTERM, 130 of SIGINT, 138 of SIGUSR1.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Where several are sent, to one rank or to several, the first of these is what the run ends by."""
NOTICES = (signal.SIGUSR1, signal.SIGUSR2)
"""Sent some time before a job is ended (`sbatch --signal=USR1@120`); the SIGTERM that follows is no second signal."""
AGAIN = 0.5
"""Seconds: a signal that follows another one so soon is the same, which a terminal and a launcher have both sent."""


class Stopped(SystemExit):
    """A signal has ended what the process did; all ranks of a run raise it together.

    Args:
        number: Of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number
        self.told = False
        """Whether the user has been told what is kept."""
        self.requeued = False
        """Whether SLURM was asked to queue the job again."""

    @property
    def name(self) -> str:
        return signal.Signals(self.number).name


class _Signals:
    """What this process has received since its handlers were installed."""

    def __init__(self) -> None:
        self.installed = False
        self.number = 0
        """Of the first signal; 0 is none."""
        self.agreed = 0
        """What all ranks end by, once they know of it."""
        self.held = False
        """Whether signals are noted only."""
        self.raised = False
        self._ends = False
        self._since = 0.0

    def note(self, number: int) -> None:
        """Counts a signal; safe in a handler and in any thread."""
        now = time.monotonic()
        if not self.number:
            self.number, self._since, self._ends = number, now, number not in NOTICES
        elif now - self._since > AGAIN:
            if self._ends or number in NOTICES:
                end_at_once(number)
            self._since, self._ends = now, True

    def handle(self, number: int, frame: object) -> None:
        if not self.number:
            self.note(number)
        if not self.held and not self.raised:
            self.raised = True
            raise Stopped(self.number)

    def stopped(self, number: int) -> Stopped:
        """What a rank raises that ends by a signal, which perhaps another rank has received."""
        if not self.number:
            self.note(number)
        self.raised = True
        return Stopped(number)


_signals = _Signals()


def end_at_once(number: int) -> None:
    """Ends this process, and nothing else: no file is finished, no rank is asked."""
    os.write(2, f"mllm: {signal.Signals(number).name} again; ended at once\n".encode())
    os._exit(128 + number)


@contextmanager
def installed() -> Iterator[None]:
    """Handles signals in this process; of two that are nested, the outer one does.

    Only the main thread can; elsewhere signals do what they did before.

    Raises:
        Stopped: A signal has come, also where something within has hidden that.
    """
    global _signals
    if _signals.installed or threading.current_thread() is not threading.main_thread():
        yield
        return
    here = _signals = _Signals()
    here.installed = True
    # `nohup` ignores it for what it starts. A shell ignores SIGINT for what runs behind it: who sends that means it.
    numbers = [each for each in SIGNALS if each != signal.SIGHUP or signal.getsignal(each) is not signal.SIG_IGN]
    read, write = os.pipe()
    os.set_blocking(write, False)
    watcher = threading.Thread(target=_watch, args=(here, read), name="signals", daemon=True)
    watcher.start()
    before = {each: signal.signal(each, here.handle) for each in numbers}
    woken = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    try:
        yield
        if here.number:
            raise Stopped(here.number)
    except Exception as error:
        if here.raised:
            # Python itself makes a RuntimeError of what is raised in a `__set_name__`.
            raise Stopped(here.number) from error
        raise
    finally:
        signal.set_wakeup_fd(woken)
        for each, handler in before.items():
            signal.signal(each, handler)
        os.write(write, b"\0")
        watcher.join()
        os.close(write)
        os.close(read)
        _signals = _Signals()


def _watch(here: _Signals, file: int) -> None:
    """Counts signals as they arrive: the handler itself waits for as long as the main thread is in a library."""
    while True:
        for number in os.read(file, 64):
            if not number:
                return
            if number in SIGNALS:
                here.note(number)


def _in_forked_child() -> None:
    """A loader's worker works until its parent ends it: what is sent to all processes of a job is not for it."""
    global _signals
    if not _signals.installed:
        return
    _signals = _Signals()
    signal.set_wakeup_fd(-1)
    for each in SIGNALS:
        signal.signal(each, signal.SIG_DFL if each == signal.SIGTERM else signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        # The thread alone learns who has sent it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_wait_for_parent, args=(os.getppid(),), daemon=True).start()


def _wait_for_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


os.register_at_fork(after_in_child=_in_forked_child)


def note(number: int) -> None:
    """As if this process had received the signal."""
    if not _signals.number:
        _signals.note(number)


def received() -> int:
    """The number of the first signal; 0 where there was none."""
    return _signals.number


def hold() -> None:
    """From now on a first signal is noted, and changes nothing until somebody asks (`received`)."""
    _signals.held = _signals.installed


def release() -> None:
    """Ends `hold`.

    Raises:
        Stopped: A signal has come meanwhile.
    """
    _signals.held = False
    if _signals.number and not _signals.raised:
        raise _signals.stopped(_signals.number)


def agree(number: int) -> None:
    """All ranks have heard that one of them has received `number`; 0 is none."""
    _signals.agreed = number


def agreed() -> int:
    """What all ranks end by; 0 while there is none."""
    return _signals.agreed


def stopped(number: int) -> Stopped:
    """What every rank raises that ends by `number`; a signal that follows is a second one."""
    return _signals.stopped(number)
