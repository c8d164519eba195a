"""Downloaded pictures in a folder: by their content, and by the addresses that gave them.

    FOLDER/content/3f/3f9a...      the bytes; the name is their SHA-256
    FOLDER/address/a0/a07c...      the name is the SHA-256 of an address, the text that of the content

What is written is written beside and renamed. When the folder holds more than it may, what was read longest ago goes.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable
from pathlib import Path

MOST = 100 * 10**9
"""Bytes that a cache may hold; $MLLM_IMAGE_CACHE_GB says otherwise."""
LOOKED_AT = 0.01
"""Share of that which one process writes before it looks at what all hold."""


def most_bytes() -> int:
    """As above.

    Raises:
        ValueError: the variable is no number above 0.
    """
    told = os.environ.get("MLLM_IMAGE_CACHE_GB", "")
    try:
        most = int(float(told) * 10**9) if told else MOST
    except (ValueError, OverflowError):
        most = 0
    if most <= 0:
        raise ValueError(f"MLLM_IMAGE_CACHE_GB: found {told!r}, expected a number above 0")
    return most


class ImageCache:
    """A folder of pictures that several processes may use at once.

    Args:
        folder: of this user alone.
        most: bytes it may hold.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self.folder, self.most = folder, most
        self._written = most  # nothing is known of what is there

    def get(self, url: str, download: Callable[[], bytes]) -> bytes:
        """The bytes at an address: those that are kept, or what `download` gives, which is kept."""
        entry = _place(self.folder / "address", _digest(url.encode()))
        found = self._kept(entry)
        if found is None:
            found = download()
            self._keep(entry, found)
        return found

    def _kept(self, entry: Path) -> bytes | None:
        """What an address gave before; None where that is gone, or is not what it was."""
        try:
            name = entry.read_text()
            content = _place(self.folder / "content", name)
            data = content.read_bytes()
            os.utime(content)
        except (OSError, ValueError):
            return None
        return data if _digest(data) == name else None

    def _keep(self, entry: Path, data: bytes) -> None:
        name = _digest(data)
        _write(_place(self.folder / "content", name), data)
        _write(entry, name.encode())
        self._written += len(data)
        if self._written >= LOOKED_AT * self.most:
            self._written = 0
            self._make_room()

    def _make_room(self) -> None:
        held = []
        for path in (self.folder / "content").glob("*/*"):
            try:
                found = path.stat()
            except OSError:
                continue  # another process removed it
            held.append((found.st_mtime_ns, found.st_size, path))
        total = sum(size for _, size, _ in held)
        for _, size, path in sorted(held):
            if total <= self.most:
                break
            path.unlink(missing_ok=True)
            total -= size


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _place(folder: Path, name: str) -> Path:
    if len(name) != 64 or not name.isalnum():
        raise ValueError(f"found {name[:80]!r}, expected a SHA-256")
    return folder / name[:2] / name


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        beside.write_bytes(data)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
