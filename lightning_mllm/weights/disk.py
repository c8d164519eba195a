"""What a disk takes: whether there is room, whether folders can be written, and what is said where a write fails."""

from __future__ import annotations

import os
import shutil
import stat
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


class NotWritten(OSError):
    """A file could not be written: `filename` is which, and `strerror` says how many bytes were needed and free."""

    def __init__(self, path: Path, error: BaseException, size: int | None = None, more: str = "") -> None:
        number = getattr(error, "errno", None)
        reason = os.strerror(number) if number else " ".join(str(error).split()) or type(error).__name__
        needed = f" {size} bytes, {free(path)} are free" if size is not None else f", {free(path)} bytes are free"
        super().__init__(number or 0, f"cannot write{needed} ({reason}){more}", str(path))

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}"


@contextmanager
def writing(path: Path, size: int | None = None) -> Iterator[None]:
    """Says of what goes wrong inside that `path` is not written.

    Raises:
        NotWritten: In place of an error of the operating system, or of safetensors.
    """
    try:
        yield
    except NotWritten:
        raise
    except (OSError, SafetensorError) as error:
        raise NotWritten(path, error, size) from error


def free(path: Path) -> int:
    """Bytes that this user may still write where `path` is or will be."""
    return shutil.disk_usage(_existing(path)).free


def check_room(needs: Mapping[Path, int], what: str) -> None:
    """Whether all of it can be written; files on the same file system share its room.

    Args:
        needs: File or folder -> bytes that will be written there.
        what: That they are for.

    Raises:
        ValueError: It cannot; names the bytes needed and free.
    """
    together: dict[int, tuple[Path, int]] = {}
    for path, size in needs.items():
        device = os.stat(_existing(path)).st_dev
        first, sum_so_far = together.get(device, (path, 0))
        together[device] = first, sum_so_far + size
    for path, size in together.values():
        if size > (found := free(path)):
            raise ValueError(f"{path}: found {found} bytes free, expected {size} for {what}")


def check_writable(folders: Iterable[Path], files: Iterable[Path] = ()) -> None:
    """Whether files can be made in `folders`, which need not exist yet, and `files` be replaced: writes one in each.

    Raises:
        ValueError: A folder cannot be written, something else has its name, or its disk is full.
    """
    for folder in folders:
        place = _existing(folder)
        if os.path.lexists(place) and not place.is_dir():
            kind = "a link to what is not there" if place.is_symlink() else "a file"
            raise ValueError(f"{place}: found {kind}, expected a folder, or nothing, which will be one")
        probe = place / f".probe.{uuid.uuid4().hex}"
        try:
            with probe.open("wb") as stream:
                stream.write(b"0" * 4096)
        except OSError as error:
            raise ValueError(
                f"{folder}: cannot be written ({error.strerror}), {free(place)} bytes are free; expected a folder to"
                " write into"
            ) from None
        finally:
            # Whoever may not write may not remove either.
            if probe.exists():
                probe.unlink()
    for file in files:
        if os.path.lexists(file) and not stat.S_ISREG(os.lstat(file).st_mode) and not file.is_file():
            raise ValueError(f"{file}: found no regular file, expected one, or nothing, which will be one")


def _existing(path: Path) -> Path:
    """The path, or the nearest above it that is there; a link counts, wherever it leads."""
    path = path.absolute()
    return next(each for each in (path, *path.parents) if os.path.lexists(each))
