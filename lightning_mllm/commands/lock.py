"""One training a run folder: a second one is refused at once, and a dead one's lock is taken over.

The lock is `flock`, which the operating system gives back when its process dies. File systems between machines (NFS,
Lustre, GPFS) hold it for all of them, so that a job which is queued again on another machine goes on; where one is
mounted with locks of this machine alone, what another one left is refused until it is deleted by hand. There is no
heartbeat: a run that is stopped for a while, or whose disk is slow, would be taken for dead, and the clocks of machines
differ; the kernel knows.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lightning_mllm.commands.config import ConfigError

LOCK = ".lock"
"""Names, in the run folder, the process that trains there."""
MOUNTS = Path("/proc/self/mountinfo")
"""Of Linux; proc(5): device in the third column, options in the sixth and the last one."""
LOCAL = {"nolock", "local_lock=all", "local_lock=flock", "localflock"}
"""Mount options that keep locks on one machine: of NFS (nfs(5)) and of Lustre (mount.lustre(8))."""


_held: set[int] = set()
"""Open files of this process; its children, such as loader workers, close theirs, so that the lock ends with it."""


def _close_in_child() -> None:
    for file in _held:
        os.close(file)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)


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
    new, owner = not run_dir.exists(), os.getpid()
    files = _taken(run_dir)
    _held.update(files)
    try:
        yield
    finally:
        if os.getpid() == owner:
            (run_dir / LOCK).unlink(missing_ok=True)
            if new and not any(run_dir.iterdir()):
                run_dir.rmdir()
            for file in files:
                os.close(file)
            _held.difference_update(files)


def _taken(run_dir: Path) -> list[int]:
    """The open lock file, ours now, and the folder; that is held too, for a lock file can be deleted."""
    path = run_dir / LOCK
    while True:
        run_dir.mkdir(parents=True, exist_ok=True)
        with ExitStack() as opened:
            try:
                folder = _opened(opened, run_dir, os.O_RDONLY | os.O_DIRECTORY)
                # What a link names is nobody's lock.
                file = _opened(opened, path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
            except FileNotFoundError:
                continue  # another process had made the folder, and removed it
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise ConfigError(f"run_dir: found {path}, which is no file, expected none")
            holder = _holder(file)
            # File systems between machines may have no locks of folders.
            with suppress(OSError):
                _flock(folder, run_dir, holder)
            try:
                _flock(file, run_dir, holder)
            except OSError as error:
                raise ConfigError(
                    f"run_dir: found no lock for {path} ({error.strerror}), expected a file system with flock; name"
                    " another"
                ) from None
            # The holder may have removed them, and another process made new ones, between opening and locking.
            if not (_is_at(file, path) and _is_at(folder, run_dir)):
                continue
            host = str(holder.get("host", ""))
            if host not in ("", socket.gethostname()) and locks_are_local(path):
                raise ConfigError(
                    f"run_dir: {run_dir} is being trained by {_named(holder)}, expected one run a folder; if that"
                    f" process is gone, delete {path}"
                )
            os.ftruncate(file, 0)
            os.pwrite(file, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode(), 0)
            opened.pop_all()
            return [file, folder]


def _opened(opened: ExitStack, path: Path, flags: int) -> int:
    file = os.open(path, flags, 0o644)
    opened.callback(os.close, file)
    return file


def _flock(file: int, run_dir: Path, holder: dict[str, object]) -> None:
    """Raises ConfigError where another process holds the file, OSError where there are no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(
            f"run_dir: {run_dir} is being trained by {_named(holder)}, expected one run a folder"
        ) from None


def _is_at(file: int, path: Path) -> bool:
    """Whether the open file is still the one with this name."""
    try:
        return os.stat(path).st_ino == os.fstat(file).st_ino
    except FileNotFoundError:
        return False


def _holder(file: int) -> dict[str, object]:
    """Who wrote the lock; nothing where it is being written, or was written by something else."""
    try:
        found = json.loads(os.pread(file, 4096, 0) or b"{}")
    except (OSError, ValueError, RecursionError):
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
    if not holder:
        return "another process"
    return f"process {holder.get('pid', '?')} on {holder.get('host', 'this machine')}"
