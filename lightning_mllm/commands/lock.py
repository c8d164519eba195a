"""One training a run folder: a second one is refused at once, and a dead one's lock is taken over."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lightning_mllm.commands.config import ConfigError

LOCK = ".lock"
"""Names, in the run folder, the process that trains there."""


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Holds the run folder for as long as this process trains in it; the ranks of one run share rank 0's lock.

    The operating system gives the lock back when a process dies, however it does.

    Raises:
        ConfigError: Another process holds it, or one of another machine, of which nothing can be known.
    """
    if rank_zero_only.rank:
        yield
        return
    new = not run_dir.exists()
    run_dir.mkdir(parents=True, exist_ok=True)
    file = _taken(run_dir / LOCK)
    try:
        yield
    finally:
        (run_dir / LOCK).unlink(missing_ok=True)
        os.close(file)
        if new and not any(run_dir.iterdir()):
            run_dir.rmdir()


def _taken(path: Path) -> int:
    """The open lock file, ours now."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            holder = _holder(file)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(file)
            raise ConfigError(
                f"run_dir: {path.parent} is being trained by {_named(holder)}, expected one run a folder"
            ) from None
        except BaseException:
            os.close(file)
            raise
        # The holder may have removed the file, and another process made a new one, between opening and locking.
        try:
            current = os.stat(path).st_ino == os.fstat(file).st_ino
        except FileNotFoundError:
            current = False
        if not current:
            os.close(file)
            continue
        host = str(holder.get("host", ""))
        if host not in ("", socket.gethostname()):
            os.close(file)
            raise ConfigError(
                f"run_dir: {path.parent} is being trained by {_named(holder)}, expected one run a folder; if that"
                f" process is gone, delete {path}"
            )
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode(), 0)
        return file


def _holder(file: int) -> dict[str, object]:
    """Who wrote the lock; nothing where it is being written."""
    try:
        found = json.loads(os.pread(file, 4096, 0) or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _named(holder: dict[str, object]) -> str:
    return f"process {holder.get('pid', '?')} on {holder.get('host', 'this machine')}"
