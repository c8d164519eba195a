"""Where each record of large files stands: found once on a machine, kept in a folder, mapped into memory.

    CACHE/index/KEY.part/000012.npz      what a finished piece of the work found; a killed run leaves it to the next one
    CACHE/index/KEY/offset.npy           all of it, in the order of the pieces

CACHE is $MLLM_CACHE, or lightning_mllm in $XDG_CACHE_HOME or ~/.cache; it must be local to the machine and ours alone.
A key stands for the content of the files and for whatever the arrays depend on beside it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from data_modules.containers.processes import in_processes
from data_modules.containers.reading import not_found

Job = TypeVar("Job")
Arrays = Mapping[str, np.ndarray]

CACHED_FROM = 8 << 20
"""Bytes of files. What is found in fewer is found by each process for itself."""
WHOLE, BLOCKS, BLOCK = 1 << 20, 16, 4096
"""Files of up to so many bytes are digested whole, of larger ones so many blocks of so many bytes."""
UNUSED_AFTER = 30 * 24 * 3600.0
"""Seconds after which what nothing has used since is removed, when something else is built."""


def cache_folder(name: str) -> Path:
    """A folder for one kind of files.

    Raises:
        ValueError: it cannot be made, or others can write to it.
    """
    told = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    root = Path(os.environ.get("MLLM_CACHE") or Path(told) / "lightning_mllm").resolve()
    try:
        for folder in (root, root / name):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # parents get the mode that the umask says
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
                raise ValueError(f"{folder}: found a folder that others can write to, expected one of this user alone")
    except OSError as error:
        raise ValueError(f"{root}: cannot keep files there ({error.strerror}); set MLLM_CACHE to a folder") from error
    return root / name


def fingerprint(path: str | Path) -> str:
    """A digest of a file's size, time of change and content: of 1 MiB or less the whole, else blocks spread evenly.

    A file that was written to has another time of change. One whose time was set back afterwards is told by its size or
    by the blocks, unless all that was changed lies between them.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            found = os.fstat(file.fileno())
            digest = hashlib.blake2b(repr((found.st_size, found.st_mtime_ns)).encode(), digest_size=16)
            if found.st_size <= WHOLE:
                digest.update(os.pread(file.fileno(), WHOLE, 0))
            else:
                for k in range(BLOCKS):
                    digest.update(os.pread(file.fileno(), BLOCK, (found.st_size - BLOCK) * k // (BLOCKS - 1)))
    except FileNotFoundError:
        raise not_found(path) from None
    except OSError as error:
        raise ValueError(f"{path}: cannot read the file ({error.strerror})") from None
    return digest.hexdigest()


def key_of(*settings: object) -> str:
    """A digest of what can be written as JSON."""
    return hashlib.blake2b(json.dumps(settings).encode(), digest_size=16).hexdigest()


def built(
    key: str,
    jobs: Sequence[Job],
    run: Callable[[Job], Arrays],
    shifts: Mapping[str, str] = {},
    *,
    kept: bool = True,
    valid: Callable[[Arrays], bool] | None = None,
) -> Arrays:
    """The arrays that the jobs find, put behind one another, read-only.

    Args:
        key: equal for equal arrays alone.
        jobs: pieces of the work, done in parallel; what each has found is kept when it is finished.
        run: does one; the same names for each.
        shifts: arrays of numbers that count the entries of another array -> that array's name.
        kept: whether in files; otherwise in this process alone.
        valid: whether arrays that were found in files are still right; otherwise they are built anew.

    Raises:
        ValueError: what a job raised first; or the folder has no room.
    """
    if not kept:
        return dict(_joined([run(job) for job in jobs], shifts))
    folder = cache_folder("index")
    try:
        with locked(folder / f"{key}.lock"):
            done = folder / key
            if done.is_dir() and not _is_right(done, valid):
                shutil.rmtree(done)  # what others have mapped of it stays valid
            if not done.is_dir():
                _remove_unused(folder)
                _build(folder / f"{key}.part", jobs, run, shifts)
                (folder / f"{key}.part").rename(done)
                for part in done.iterdir():
                    if part.suffix != ".npy":  # what killed processes left, too
                        part.unlink()
            os.utime(done)
            return _found(done)
    except OSError as error:
        raise ValueError(
            f"{folder}: cannot keep an index there ({error.strerror or error}); set MLLM_CACHE to a local folder with"
            " room for it"
        ) from error


def _build(parts: Path, jobs: Sequence[Job], run: Callable[[Job], Arrays], shifts: Mapping[str, str]) -> None:
    """Does the jobs that are not done, and puts together what all have found."""
    parts.mkdir(mode=0o700, exist_ok=True)
    missing = [n for n in range(len(jobs)) if not (parts / f"{n:06}.npz").exists()]
    in_processes([partial(_store, parts / f"{n:06}.npz", run, jobs[n]) for n in missing])
    in_processes([partial(_join, parts, len(jobs), shifts)])


def _is_right(folder: Path, valid: Callable[[Arrays], bool] | None) -> bool:
    """Whether the files are whole, and what is in them is valid."""
    try:
        found = _found(folder)
        return valid is None or valid(found)
    except (EOFError, ValueError):
        return False


def _found(folder: Path) -> Arrays:
    return {path.stem: mapped(path) for path in sorted(folder.glob("*.npy"))}


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process of the machine at a time."""
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def mapped(path: Path) -> np.ndarray:
    """The array of a .npy file; an empty one has nothing to map."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
    except ValueError:
        return np.load(path, allow_pickle=False)


def _store(path: Path, run: Callable[[Job], Arrays], job: Job) -> None:
    beside = path.with_suffix(f".{os.getpid()}")
    with open(beside, "wb") as file:
        np.savez(file, allow_pickle=False, **run(job))
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def _joined(parts: Sequence[Arrays], shifts: Mapping[str, str]) -> Iterator[tuple[str, np.ndarray]]:
    for name in parts[0] if parts else ():
        before = 0
        each = []
        for part in parts:
            each.append(part[name] + part[name].dtype.type(before) if name in shifts else part[name])
            before += len(part[shifts[name]]) if name in shifts else 0
        yield name, np.concatenate(each)


def _join(folder: Path, count: int, shifts: Mapping[str, str]) -> None:
    """Puts the parts behind one another, one array at a time."""
    parts = [np.load(folder / f"{n:06}.npz", allow_pickle=False) for n in range(count)]
    try:
        for name, array in _joined(parts, shifts):
            with open(folder / f"{name}.npy", "wb") as file:
                np.save(file, array, allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())
    finally:
        for part in parts:
            part.close()


def _remove_unused(folder: Path) -> None:
    for each in folder.iterdir():
        if each.is_dir() and time.time() - each.stat().st_mtime > UNUSED_AFTER:
            shutil.rmtree(each, ignore_errors=True)


def texts(sentences: Sequence[str]) -> np.ndarray:
    """Texts as an array that can be put behind others: each ends with a zero byte, written `\\0` inside one."""
    whole = (each.replace("\0", "\\0") for each in sentences)
    return np.frombuffer("".join(f"{each}\0" for each in whole).encode("utf-8", "replace"), dtype=np.uint8)


def texts_in(array: np.ndarray) -> list[str]:
    """What `texts` wrote."""
    return array.tobytes().decode("utf-8").split("\0")[:-1]
