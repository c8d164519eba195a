"""Large arrays that the processes of a machine share: one of them computes an array, all of them memory-map it."""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np

SHARED_FROM = 1 << 20
"""Elements. A smaller array is computed by each process for itself: that takes a moment and a few megabytes."""


def shared_array(key: Callable[[], str], size: int, build: Callable[[], np.ndarray]) -> np.ndarray:
    """`build()`, called once on a machine; read-only where it is shared.

    The file lies in the folder for temporary files (TMPDIR), which must be local to the machine. It is removed when the
    array is no longer used in one of the processes; what others have mapped stays valid. A killed process leaves its
    file behind, which the next call with the same key takes.

    Args:
        key: the name of the file; the same for equal arrays only.
        size: elements of the array.
        build: computes the array.

    Raises:
        ValueError: the folder is not ours, or has no room or no locks.
    """
    if size < SHARED_FROM:
        return build()
    folder = Path(tempfile.gettempdir()) / f"lightning_mllm-{os.getuid()}"
    path = folder / f"{key()}.npy"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
            raise ValueError(f"{folder}: found a folder that others can write to, expected one of this user alone")
        with open(folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            while (array := _mapped(path)) is None:
                beside = path.with_suffix(".part")
                with open(beside, "wb") as file:
                    np.save(file, build(), allow_pickle=False)
                beside.replace(path)
    except OSError as error:
        raise ValueError(
            f"{folder}: cannot keep an array of {size:,} elements there ({error.strerror}), expected a local folder"
            " with room for it; set TMPDIR to one"
        ) from error
    weakref.finalize(array, path.unlink, missing_ok=True)
    return array


def _mapped(path: Path) -> np.ndarray | None:
    """The array of a file, if it is there: another process may have removed it just now."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
    except FileNotFoundError:
        return None
