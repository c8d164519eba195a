"""A chat template tried once in a process of its own: a stranger's may loop for hours or write gigabytes."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

SECONDS, WAIT = 5, 60.0
"""Of a core that the trial may take, and of any clock."""
BYTES = 256 << 20
"""Of memory that it may take."""
OUT_OF_MEMORY = 3


class TemplateBoundsError(ValueError):
    """A template that takes more than it may."""


def check_bounds(render: Callable[[], object]) -> None:
    """Runs `render` in a forked process, whatever it raises but a lack of memory; elsewhere than on Linux not at all.

    Raises:
        TemplateBoundsError: It takes more than `SECONDS` or `BYTES`, or ends the process.
    """
    if sys.platform != "linux":
        return
    try:
        code = _tried(render)
    except OSError as error:  # as many processes as may be; children that nobody waits for
        raise TemplateBoundsError(f"it cannot be tried in a process of its own ({error.strerror})") from None
    if code == OUT_OF_MEMORY:
        raise TemplateBoundsError(f"it takes more than {BYTES >> 20} MiB, expected a text")
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        raise TemplateBoundsError(f"it is not done after {SECONDS} seconds, expected a moment")
    if code:
        raise TemplateBoundsError(f"it ends the process (exit code {code}), expected a text")


def _tried(render: Callable[[], object]) -> int:
    """The exit code of a process that renders."""
    if not (child := os.fork()):
        _try(render)
    began = time.monotonic()
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() - began > WAIT:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise TemplateBoundsError(f"it is not done after {WAIT:g} seconds, expected a moment")
        time.sleep(0.001)
    return os.waitstatus_to_exitcode(ended[1])


def _try(render: Callable[[], object]) -> None:
    """What the child does."""
    code = 0
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGXCPU):
            signal.signal(number, signal.SIG_DFL)
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (held + BYTES, held + BYTES))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
        render()
    except MemoryError:
        code = OUT_OF_MEMORY
    except BaseException:
        code = 0
    os._exit(code)
