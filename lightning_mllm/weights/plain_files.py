"""Small files of others (configurations, tokenizers, answers): regular, of bounded size, and JSON, or a sentence."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}
READ = (".json", ".jinja", ".model", ".txt", ".safetensors", ".bin")
"""Endings of what transformers reads in the folder of a model."""
TENSORS = (".safetensors", ".bin")
MOST = 1 << 30
"""Bytes of a file that is read whole; the largest tokenizer has some 30 MB."""
LONGEST = 1 << 28
"""Bytes of a line."""
NOTED = 300
"""Characters of what another library says."""


def check_regular(path: Path, most: int | None = MOST) -> None:
    """Looks at a file without opening it, which waits at a pipe and never ends at a device.

    Raises:
        ValueError: It is no regular file, or has more than `most` bytes.
    """
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({getattr(error, 'strerror', error)})") from None
    if not stat.S_ISREG(found.st_mode):
        kind = KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise ValueError(f"{path}: found {kind}, expected a regular file")
    if most is not None and found.st_size > most:
        raise ValueError(f"{path}: found {found.st_size} bytes, expected at most {most}")


def check_folder(folder: Path) -> None:
    """As `check_regular`, of all that transformers reads in the folder of a model; of none that is not there."""
    for each in sorted(folder.iterdir()) if folder.is_dir() else ():
        if each.name.endswith(READ):
            check_regular(each, None if each.name.endswith(TENSORS) else MOST)


def read_text(path: Path) -> str:
    """A text in UTF-8.

    Raises:
        ValueError: It is no regular file, too large, or not UTF-8.
    """
    check_regular(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: found a byte that is not UTF-8 at offset {error.start}, expected UTF-8") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number (from 1) and text of each line.

    Raises:
        ValueError: The file is no regular one, a line has more than `LONGEST` bytes or is not UTF-8.
    """
    check_regular(path, None)
    number = 0
    try:
        with open(path, "rb") as file:
            while line := file.readline(LONGEST):
                number += 1
                if len(line) == LONGEST:
                    raise ValueError(f"{path}:{number}: found a line of {LONGEST} bytes or more, expected fewer")
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}:{number}: found a byte that is not UTF-8 ({error.reason}), expected UTF-8") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)[:40]!a} twice")
    return found


def parse(text: str, where: object, expected: str) -> dict[str, object]:
    """A JSON object, no key twice in it.

    Args:
        text: Of a file or a line.
        where: How errors begin.
        expected: What it is, in words.

    Raises:
        ValueError: It is none.
    """
    try:
        found = json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError(f"{where}: found lists in lists too deep to read, expected {expected}") from None
    except ValueError as error:
        raise ValueError(f"{where}: found no JSON ({error}), expected {expected}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{where}: found a {type(found).__name__}, expected {expected}")
    return found


def read_object(path: Path, expected: str) -> dict[str, object]:
    """The JSON object of a file.

    Raises:
        ValueError: As `read_text` and `parse`.
    """
    return parse(read_text(path), path, expected)


def weight_map(index: Path) -> dict[str, str]:
    """Name of a tensor -> the file beside the index that holds it.

    Raises:
        ValueError: As `read_object`; or it names no files, or one outside the folder.
    """
    expected = "JSON with a weight_map of names to files"
    found = read_object(index, expected).get("weight_map")
    files = {name: str(file) for name, file in found.items()} if isinstance(found, dict) else {}
    if not files or files != found:
        raise ValueError(f"{index}: found no names of files, expected {expected}")
    odd = next((file for file in files.values() if file in ("", "..") or "\0" in file or Path(file).name != file), None)
    if odd is not None:
        raise ValueError(f"{index}: found {odd!r}, a file outside the folder, expected names of files beside the index")
    return files


def reason(error: BaseException) -> str:
    """What another library says, in a line; a number of them say it in several, or nothing."""
    return " ".join((str(error) or type(error).__name__).split())[:NOTED]
