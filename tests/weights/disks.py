"""Small disks, and users who may not write."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

NOBODY = 65534


@contextmanager
def small_disk(place: Path, size: int, options: str = "") -> Iterator[bool]:
    """A file system of `size` bytes at `place`; False where none may be mounted."""
    place.mkdir(parents=True, exist_ok=True)
    more = f",{options}" if options else ""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}{more}", "tmpfs", str(place)]
    mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path, leave: int) -> Path:
    """A file that takes what is free at `place` but `leave` bytes."""
    filler = place / "filler"
    filler.unlink(missing_ok=True)
    status = os.statvfs(place)
    with filler.open("wb") as stream:
        stream.write(b"0" * max(status.f_bavail * status.f_frsize - leave, 0))
    return filler


def in_child(work: Callable[[], None], *, user: int | None = None, file_size: int | None = None) -> tuple[int, str]:
    """What a forked process exits with that does `work`, as another user or with a limit on the size of files, and what
    it says."""
    read, write = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(read)
        os.dup2(write, 1)
        os.dup2(write, 2)
        sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
        code = 0
        try:
            if file_size is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
            if user is not None:
                os.setegid(user)
                os.seteuid(user)
            work()
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else 1
        except BaseException:
            os.write(2, traceback.format_exc().encode())
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        said = stream.read().decode()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said
