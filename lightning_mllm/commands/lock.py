"""One training a run folder: a second one is refused at once, and a dead one's lock is taken over.

The lock is `flock`, which the operating system gives back when its process dies. File systems between machines (NFS,
Lustre, GPFS) hold it for all of them, so that a job which is queued again on another machine goes on; where one is
mounted with locks of this machine alone, what another one left is refused until it is deleted by hand.
"""

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
MOUNTS = Path("/proc/self/mountinfo")
"""Of Linux; proc(5): device in the third column, options in the sixth and the last one."""
LOCAL = {"nolock", "local_lock=all", "local_lock=flock", "localflock"}
"""Mount options that keep locks on one machine: of NFS (nfs(5)) and of Lustre (mount.lustre(8))."""


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Holds the run folder for as long as this process trains in it; the ranks of one run share rank 0's lock.

    Raises:
        ConfigError: Another process holds it; or one of another machine may, where locks reach no other machine; or the
            file system has no locks.
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
        except BlockingIOError:
            os.close(file)
            raise ConfigError(
                f"run_dir: {path.parent} is being trained by {_named(holder)}, expected one run a folder"
            ) from None
        except OSError as error:
            os.close(file)
            raise ConfigError(
                f"run_dir: found no lock for {path} ({error.strerror}), expected a file system with flock; name another"
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
        if host not in ("", socket.gethostname()) and locks_are_local(path):
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


def locks_are_local(path: Path, mounts: Path = MOUNTS) -> bool:
    """Whether the file system below `path` is shared, but mounted with locks that only this machine sees."""
    device = os.stat(path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    lines = mounts.read_text(encoding="utf-8").splitlines() if mounts.is_file() else []
    found = [line.split() for line in lines]
    options = {each for fields in found if fields[2] == number for each in fields[-1].split(",") + fields[5].split(",")}
    return bool(options & LOCAL)


def _named(holder: dict[str, object]) -> str:
    return f"process {holder.get('pid', '?')} on {holder.get('host', 'this machine')}"
