"""What files hold, as short digests: they tell a changed data set from one that was moved.

A file is digested whole; of more than a gigabyte under one key, the first gigabyte, and of the files behind it their
sizes and about 1,024 blocks of a megabyte, spread evenly. Of a folder of pictures all are digested whole where they are
at most 20,000 and half a gigabyte.
Otherwise about 20,000, chosen by their names, are known by their size, and 500 of them by their first megabyte: a
change of other pixels, or one that leaves the size, is then not seen. Names of folders above and times do not count.
What is no regular file, or cannot be read, is known by that: whether it is needed is told when it is trained on.
"""

from __future__ import annotations

import base64
import glob
import hashlib
import json
import os
import re
import stat
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lightning_mllm.weights.files import resource

WHOLE, BLOCK, BLOCKS = 1 << 30, 1 << 20, 1024
PICTURES, PICTURE_BYTES, LOOKED_INTO = 20_000, 1 << 29, 500
MOST = 1_000_000
"""Files of a folder that are looked for."""
STORED = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".tar", ".arrow", ".parquet", ".jsonl")
"""How what data folders are read for ends."""
READ = (".json", ".jinja", ".model", ".txt", ".safetensors", ".bin", ".pt", ".pth")
"""How what is read of a model's folder ends."""
ALL = 1 << 32
"""One above the largest number of a name."""


def files_at(text: str) -> list[Path]:
    """The files that a setting names: one, those of a pattern (`shards/{000..331}.tar`, `*.jsonl`), or none."""
    if not text or len(text) > 4096 or "\n" in text or "\0" in text or "://" in text:
        return []
    try:
        path = resource(text)
        if path.exists():
            return [path] if path.is_file() else []
    except (OSError, ValueError, RuntimeError):
        return []
    pattern = re.sub(r"\{\d+\.\.\d+\}", "*", text)
    found = sorted(glob.glob(pattern)) if glob.has_magic(pattern) and "/" in text else []
    return [Path(each) for each in found if os.path.isfile(each)]


def folder_at(text: str) -> Path | None:
    """The folder that a setting names."""
    try:
        path = resource(text)
        return path if text and path.is_dir() else None
    except (OSError, ValueError, RuntimeError):
        return None


def of_files(paths: Sequence[Path]) -> str:
    """A digest of the files in their order.

    Raises:
        ValueError: One cannot be read.
    """
    digest, total, count = hashlib.blake2b(digest_size=16), 0, len(paths)
    for number, path in enumerate(paths):
        blocks = BLOCKS * (number + 1) // count - BLOCKS * number // count
        try:
            size = path.stat().st_size
            total += size
            digest.update(size.to_bytes(8, "big"))
            if total > WHOLE and not blocks:
                continue
            with path.open("rb") as file:
                if total <= WHOLE:
                    while piece := file.read(BLOCK):
                        digest.update(piece)
                    continue
                starts = range(0, size, max(BLOCK, size // blocks))[:blocks]
                for start in [*starts, *([max(0, size - BLOCK)] if blocks > 1 else [])]:
                    file.seek(start)
                    digest.update(file.read(BLOCK))
        except OSError as error:
            raise ValueError(f"{path}: cannot read the file ({error.strerror})") from None
    return digest.hexdigest()


def files_of_model(folder: Path) -> list[Path]:
    """What is read of a folder in the layout of transformers."""
    return sorted(each for each in folder.iterdir() if each.is_file() and each.suffix in READ)


def stamps(paths: Sequence[Path]) -> list[list[int]]:
    """Size and time of change of each file, by which one that nobody touched is known without reading it."""
    found = [each.stat() for each in paths]
    return [[each.st_size, each.st_mtime_ns] for each in found]


Folder = Mapping[str, object]
"""`share`: of the range of names' numbers, what is looked at; `whole`: whether contents are; `files`: the digests."""


def of_folder(folder: Path, like: Folder | None = None) -> dict[str, object]:
    """Digests of the pictures, and other stored files, in a folder and those below it.

    Args:
        like: Digests made before, to compare with; None chooses what is looked at.
    """
    names = [name for _, name in zip(range(MOST), _names(folder, ""), strict=False)]
    share = like["share"] if like else ALL if len(names) <= PICTURES else ALL * PICTURES // len(names)
    assert isinstance(share, int)
    chosen = names if share == ALL else [name for name in names if _number(name) < share]
    sizes = {name: _size(folder / name) for name in chosen}
    whole = bool(like["whole"]) if like else share == ALL and sum(sizes.values()) <= PICTURE_BYTES
    into = share if share == ALL and len(chosen) <= LOOKED_INTO else share * LOOKED_INTO // PICTURES
    found = {}
    for name, size in sizes.items():
        digest = hashlib.blake2b(str(size).encode(), digest_size=6)
        if size >= 0 and (whole or _number(name) < into):
            try:
                with open(folder / name, "rb", buffering=0) as file:
                    digest.update(file.read() if whole else file.read(BLOCK))
            except OSError:
                digest.update(b"cannot be read")
        found[name] = digest.hexdigest()
    text = json.dumps(found, ensure_ascii=True, separators=(",", ":")).encode()
    return {"share": share, "whole": whole, "files": base64.b64encode(zlib.compress(text, 1)).decode()}


def changed_files(known: Folder, now: Folder) -> list[str]:
    """Names of files that are gone or have another content; a new file changes nothing."""
    before, after = _unpacked(known), _unpacked(now)
    return sorted(name for name, digest in before.items() if after.get(name) != digest)


def _unpacked(folder: Folder) -> dict[str, str]:
    return json.loads(zlib.decompress(base64.b64decode(str(folder["files"]))))


def _names(folder: Path, below: str, above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[str]:
    """Of the stored files, in a fixed order; hidden folders, those that cannot be listed, and links to a folder above,
    are left out."""
    try:
        own = folder.stat()
        if (inode := (own.st_dev, own.st_ino)) in above:
            return
        with os.scandir(folder) as found:
            entries = sorted((each.name, each.is_dir()) for each in found if not each.name.startswith("."))
    except OSError:
        return
    for name, is_folder in entries:
        if is_folder:
            yield from _names(folder / name, f"{below}{name}/", above | {inode})
        elif name.lower().endswith(STORED):
            yield below + name


def _size(path: Path) -> int:
    """Of a regular file; -1 of anything else, such as a pipe, which is not to be opened, or a link to nothing."""
    try:
        found = os.stat(path)
    except OSError:
        return -1
    return found.st_size if stat.S_ISREG(found.st_mode) else -1


def _number(name: str) -> int:
    return zlib.crc32(name.encode("utf-8", "surrogateescape"))
