"""What a checkpoint's manifest says of its files, and whether they are so.

{"format": 2, "name": "step-200", "files": {"state.pt": {"bytes": 5120, "sha256": "9f86d0..."}, ...}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from lightning_mllm.weights.files import sha256, write_text
from lightning_mllm.weights.finite import is_finite

FORMAT = 2
MANIFEST, STATE = "manifest.json", "state.pt"
SHARDS = "*.safetensors"
OLD = ".old"
"""End of the hidden name of a checkpoint that another of the same name is replacing."""
Values = dict[str, Any]
"""Plain values by name: numbers, texts, tensors, and lists and dictionaries of them."""


class FileFacts(NamedTuple):
    """What the manifest says of a file."""

    bytes: int
    sha256: str
    """Empty in a checkpoint of format 1, which had lengths alone."""

    @classmethod
    def of(cls, file: Path) -> FileFacts:
        return cls(file.stat().st_size, sha256(file))


def write_manifest(folder: Path, name: str, files: Mapping[str, FileFacts]) -> None:
    """Says what is in `folder`, the checkpoint that will be called `name`."""
    told = {"format": FORMAT, "name": name, "files": {file: facts._asdict() for file, facts in files.items()}}
    write_text(folder / MANIFEST, json.dumps(told, indent=2) + "\n")


def read_manifest(path: Path) -> tuple[str, dict[str, FileFacts]]:
    """The name under which the checkpoint at `path` was written (empty in format 1), and its files.

    Raises:
        ValueError: There is none, or it is damaged; the reason alone, without `path`.
    """
    if not path.is_dir():
        raise ValueError("is no folder" if path.exists() else "is not there")
    file = path / MANIFEST
    if not file.is_file():
        raise ValueError(f"{MANIFEST} is missing")
    try:
        content = json.loads(file.read_bytes())
        files = {
            name: FileFacts(each, "") if isinstance(each, int) else FileFacts(int(each["bytes"]), str(each["sha256"]))
            for name, each in content["files"].items()
        }
        name = str(content.get("name", ""))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise ValueError(f"{MANIFEST} is damaged ({type(error).__name__}: {error})") from None
    if odd := next((name for name in files if Path(name).name != name), None):
        raise ValueError(f"{MANIFEST} names {odd!r}, which is no file of the folder")
    if STATE not in files:
        raise ValueError(f"{MANIFEST} names no {STATE}")
    return name, files


def damage(path: Path, rank: int = 0, world: int = 1) -> str:
    """Why the checkpoint at `path` must not be used, and of which file; empty where it is whole.

    Every rank looks for all of its files; it reads its share of them, whose contents and numbers it checks.
    """
    try:
        name, files = read_manifest(path)
        if name and name != path.name.removeprefix(".").removesuffix(OLD):
            raise ValueError(f"was written as {name}")
        for name, facts in files.items():
            _check_length(path / name, facts)
        if stray := sorted({each.name for each in path.glob(SHARDS)} - set(files)):
            raise ValueError(f"{stray[0]} is not in {MANIFEST}")
        for name in sorted(files)[rank::world]:
            _check_content(path / name, files[name])
    except Exception as error:  # one rank that raised would leave the others waiting
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
        return f"{kind}{' '.join(str(error).split())}"
    return ""


def _check_length(file: Path, facts: FileFacts) -> None:
    if not file.is_file():
        raise ValueError(f"{file.name} is missing")
    if (found := file.stat().st_size) != facts.bytes:
        raise ValueError(f"{file.name} has {found} of {facts.bytes} bytes")


def _check_content(file: Path, facts: FileFacts) -> None:
    if facts.sha256 and (found := sha256(file)) != facts.sha256:
        raise ValueError(f"{file.name} has SHA-256 {found[:12]}..., {MANIFEST} says {facts.sha256[:12]}...")
    if file.name == STATE:
        load_plain(file)
    elif file.match(SHARDS) and (name := _first_not_finite(file)):
        raise ValueError(f"{file.name} holds NaN or infinity in {name}")


def load_plain(file: Path) -> Values:
    """The plain values in a file, without running what else it may hold.

    Raises:
        ValueError: It holds something else, or is damaged; names the file, not its folder.
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise ValueError(
            f"{file.name} is damaged or holds more than tensors and plain values ({type(error).__name__}: {reason})"
        ) from error


def _first_not_finite(file: Path) -> str:
    """The name of a tensor in the file with a number that is none; empty where there is no such tensor."""
    try:
        with safe_open(file, framework="pt", device="cpu") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                tensor = tensors.get_tensor(name)
                if not is_finite(tensor):
                    return name
    except SafetensorError as error:
        raise ValueError(f"{file.name} cannot be read as safetensors ({error})") from None
    return ""
