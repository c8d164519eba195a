"""Large arrays that the processes of a machine share: one of them computes an array, all of them memory-map it."""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np

SHARED_FROM = 1 << 20
"""Elements. A smaller array is computed by each process for itself: that takes a moment and a few megabytes."""
ABANDONED_AFTER = 24 * 3600.0
"""Seconds after which a file is removed by the next call that needs room for another one."""


def shared_array(key: Callable[[], str], size: int, build: Callable[[], np.ndarray]) -> np.ndarray:
    """`build()`, called once on a machine; read-only where it is shared.

    The file lies in the folder for temporary files (TMPDIR), which must be local to the machine. It is removed when the
    array is no longer used in one of the processes; what others have mapped stays valid. A killed process leaves its
    file behind, which the next call with the same key takes; the next one with another key removes it after a day.

    Args:
        key: the name of the file; the same for equal arrays only.
        size: elements of the array.
        build: computes the array.

    Raises:
        ValueError: the folder is not ours, or has no room or no locks.
    """
    if size < SHARED_FROM:
        return build()
    folder, name = Path(os.environ.get("TMPDIR", "/tmp")), f"{key()}.npy"
    try:
        folder = Path(tempfile.gettempdir()) / f"lightning_mllm-{os.getuid()}"
        path = folder / name
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
            raise ValueError(f"{folder}: found a folder that others can write to, expected one of this user alone")
        with open(folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            while (array := _mapped(path)) is None:
                _remove_abandoned(folder)
                _write(path, build())
    except OSError as error:
        raise ValueError(
            f"{folder}: cannot keep an array of {size:,} elements there ({error.strerror or error}), expected a local"
            " folder with room for it; set TMPDIR to one"
        ) from error
    weakref.finalize(array, path.unlink, missing_ok=True)
    return array


def _write(path: Path, array: np.ndarray) -> None:
    """Beside its name first; what cannot be written whole is removed."""
    beside = path.with_suffix(".part")
    try:
        with open(beside, "wb") as file:
            np.save(file, array, allow_pickle=False)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _remove_abandoned(folder: Path) -> None:
    """What is in use stays mapped without its name; a process that had not mapped it yet computes it anew."""
    for each in folder.glob("*-*.*"):
        if time.time() - each.stat().st_mtime > ABANDONED_AFTER:
            each.unlink(missing_ok=True)


def _mapped(path: Path) -> np.ndarray | None:
    """The array of a file, if it is there: another process may have removed it just now."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
    except FileNotFoundError:
        return None
