"""Reading data files so that whatever is wrong with one is said in a sentence."""

from __future__ import annotations

import json
import os
import re
import stat
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from io import FileIO
from itertools import pairwise
from pathlib import Path

WORLDS = {"world": "", "textured": " --style textured"}
"""Folders of the small world that the quickstarts read -> how they are drawn."""
_HALF = re.compile(r"\\u[dD][89a-fA-F]")
OPEN_FILES = 64
"""Files that a process keeps open to read from."""


class RecordError(ValueError):
    """The rule that a record breaks; the reader of the file adds the file's name, the place and the id."""

    record: object = None
    """What could be read of it."""


def located(path: str | Path, place: str) -> str:
    """File and place as error messages begin; the place as `Records.place` gives it, or empty."""
    return f"{path}{place}" if not place or place.startswith(":") else f"{path}: {place}"


def not_found(path: str | Path) -> ValueError:
    """The error for a missing file or folder; the small world can be made, so it says how."""
    parts = Path(path).parts
    for i, (above, name) in enumerate(pairwise(parts)):
        if above == "data" and name in WORLDS:
            return ValueError(f"{path} not found; make it with: mllm world {Path(*parts[: i + 2])}{WORLDS[name]}")
    return ValueError(f"{path} not found")


KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}
"""What is no regular file, as error messages call it."""


def regular(path: str | Path) -> os.stat_result:
    """What is known of a file without opening it, which waits at a pipe and never ends at a device.

    Raises:
        ValueError: it is missing, is no regular file, or one that the kernel makes while it is read (/proc, /sys).
    """
    try:
        found = os.stat(path)
    except FileNotFoundError:
        raise not_found(path) from None
    except (OSError, ValueError) as error:  # a link to itself, a name that is too long, a zero byte in it
        raise ValueError(f"{path}: cannot read the file ({getattr(error, 'strerror', error)})") from None
    kind = KINDS.get(stat.S_IFMT(found.st_mode))
    if kind is None and found.st_dev in _made_by_the_kernel():
        kind = "a file of the kernel"
    if kind is not None:
        raise ValueError(f"{path}: found {kind}, expected a regular file")
    return found


@cache
def _made_by_the_kernel() -> frozenset[int]:
    return frozenset(os.stat(each).st_dev for each in ("/proc", "/sys") if os.path.ismount(each))


def _no_constant(name: str) -> None:
    raise RecordError(f"found {name}, expected a finite number")


def _no_key_twice(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise RecordError(f"found the key '{twice[:40]}' twice in an object, expected it once")
    return found


def parse(text: bytes | str, *, halves: bool = False) -> object:
    """JSON in UTF-8, without NaN and infinity, no key twice in an object.

    Args:
        halves: whether texts may hold half of a surrogate pair (half an emoji), written as an escape.

    Raises:
        RecordError: it is not.
    """
    value: object = None
    try:
        told = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        value = json.loads(told, parse_constant=_no_constant, object_pairs_hook=_no_key_twice)
        if not halves and _HALF.search(told):
            # Two halves may make a whole character.
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except UnicodeEncodeError as error:
        rule = RecordError(f"found half of a character ({error.object[error.start]!a}), expected whole ones")
        rule.record = value
        raise rule from None
    except UnicodeDecodeError as error:
        raise RecordError(f"found a byte that is not UTF-8 at offset {error.start}, expected UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise RecordError(f"line {error.lineno}, column {error.colno}: expected JSON ({error.msg})") from None
    except RecursionError:
        raise RecordError("found lists in lists too deep to read, expected JSON of a few levels") from None
    except RecordError:
        raise
    except ValueError as error:
        raise RecordError(f"found a number that is too long ({error}), expected fewer digits") from None


_looked_at: ContextVar[set[str] | None] = ContextVar("_looked_at", default=None)


@contextmanager
def files_looked_at() -> Iterator[set[str]]:
    """The files that are read meanwhile, by those functions that say so with `look_at`."""
    found: set[str] = set()
    token = _looked_at.set(found)
    try:
        yield found
    finally:
        _looked_at.reset(token)


def look_at(path: str | Path) -> None:
    """What is done depends on this file."""
    if (found := _looked_at.get()) is not None:
        found.add(str(path))


class OpenFiles:
    """Reads pieces of files, the last of which stay open. A process that is forked or pickled opens its own.

    A path that leads to another file than before, in another working folder or after a file was put in its place, is
    opened anew. A file that is dropped is closed when the last thread that reads from it is done.
    """

    def __init__(self) -> None:
        self._files: OrderedDict[str, FileIO] = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        return {"_files": OrderedDict()}

    def read(self, path: str | Path, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on.

        Raises:
            ValueError: the file cannot be read, or ends before.
        """
        try:
            file = self._opened(str(path))  # held, so that no other thread closes it
            found = os.pread(file.fileno(), size, offset)
        except FileNotFoundError:
            raise not_found(path) from None
        except OSError as error:
            raise ValueError(f"{path}: cannot read the file ({error.strerror})") from None
        if len(found) != size:
            raise ValueError(
                f"{path}: found {len(found)} bytes at offset {offset}, expected {size}; was it changed since it was"
                " indexed?"
            )
        return found

    def _opened(self, path: str) -> FileIO:
        file = self._files.pop(path, None)
        if file is None or not os.path.samestat(os.stat(path), os.fstat(file.fileno())):
            file = FileIO(path)
        self._files[path] = file
        while len(self._files) > OPEN_FILES:
            self._files.popitem(last=False)
        return file


FILES = OpenFiles()
"""Of this process."""
