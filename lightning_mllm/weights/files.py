"""Tensors in files: written whole or not at all, read one at a time, never by running code that a file holds."""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from importlib.resources import files
from pathlib import Path
from pickle import UnpicklingError
from typing import cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lightning_mllm.weights.disk import writing
from lightning_mllm.weights.plain_files import check_regular, weight_map
from lightning_mllm.weights.safetensors_writer import Layout, size, write_safetensors, writing_order

SHARD_BYTES = 4 * 1024**3
"""Largest file; more than that is cut into shards with an index, as transformers reads them."""

PACKAGE = "package:"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WHOLE = ("model.safetensors", "pytorch_model.bin")
BESIDE = "lightning_mllm.safetensors"
"""In a folder of transformers that we wrote: tensors that the class cannot hold, under our names."""
FORCE_PICKLE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


def resource(path: str | Path) -> Path:
    """`path` as it is on disk; `package:backbones/clip` is a file or folder shipped with the package.

    Raises:
        ValueError: The package holds no such thing.
    """
    text = str(path)
    if not text.startswith(PACKAGE):
        return Path(path).expanduser()
    location = Path(str(files("lightning_mllm").joinpath(text.removeprefix(PACKAGE))))
    if not location.exists():
        raise ValueError(f"{text}: found nothing at {location}, expected a file or folder of the package")
    return location


def sha256(path: Path) -> str:
    """The SHA-256 of a file; of a folder, that of its tensor files' names and digests."""
    if path.is_dir():
        digest = hashlib.sha256()
        for file in tensor_files(path):
            digest.update(f"{file.name} {sha256(file)}\n".encode())
        return digest.hexdigest()
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """As `write_bytes`, in UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a small file under another name and renames it, so that a reader never sees half of it.

    Raises:
        NotWritten: It cannot be written; what was there before stays.
    """
    beside = _beside(path)
    with writing(path, len(content)):
        try:
            with beside.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            beside.rename(path)
        finally:
            beside.unlink(missing_ok=True)
        sync_folder(path.parent)


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
    shard_bytes: int = SHARD_BYTES,
) -> list[Path]:
    """Writes `path` (`.../model.safetensors`), or shards of it and their index if all is larger than `shard_bytes`.

    Tensors are taken one shard at a time. Files are written under other names, synced and renamed; a failure removes
    them and leaves what was there before.

    Returns:
        The files of tensors, in order.

    Raises:
        OSError: The disk is full (with the bytes needed and free), or the folder cannot be written.
    """
    assert path.suffix == ".safetensors", path
    path.parent.mkdir(parents=True, exist_ok=True)
    written: list[tuple[Path, list[str]]] = []
    total = 0
    try:
        for shard in _shards(pairs(tensors), shard_bytes):
            beside = _beside(path)
            written.append((beside, list(shard)))
            # One entry: safetensors writes several in a random order, and equal weights would have unequal checksums.
            save = partial(save_file, dict(shard), metadata={"format": "pt"})
            total += _save(beside, sum(tensor.nbytes for tensor in shard.values()), path, save)
        return _publish(path, written, total)
    finally:
        for beside, _ in written:
            beside.unlink(missing_ok=True)


def write_in_pieces(
    path: Path, layout: Layout, read: Callable[[str], Iterable[Tensor]], shard_bytes: int = SHARD_BYTES
) -> list[Path]:
    """As `write_tensors`, but nothing more than a piece is in memory: what the files hold is said beforehand.

    Args:
        read: Gives the tensor called by one of the layout's names, in pieces that follow one another; once for each.

    Raises:
        OSError: As `write_tensors`.
    """
    assert path.suffix == ".safetensors", path
    path.parent.mkdir(parents=True, exist_ok=True)
    written: list[tuple[Path, list[str]]] = []
    total = 0
    try:
        for names in _cut(layout, shard_bytes):
            beside = _beside(path)
            written.append((beside, names))
            shard = {name: layout[name] for name in names}
            total += _save(
                beside, sum(map(size, shard.values())), path, lambda to, shard=shard: write_safetensors(to, shard, read)
            )
        return _publish(path, written, total)
    finally:
        for beside, _ in written:
            beside.unlink(missing_ok=True)


def reading_order(layout: Layout, shard_bytes: int = SHARD_BYTES) -> Iterator[str]:
    """The names in the order in which `write_in_pieces` asks for them."""
    for names in _cut(layout, shard_bytes):
        yield from writing_order({name: layout[name] for name in names})


def pairs(tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]) -> Iterable[tuple[str, Tensor]]:
    """Names and tensors of either."""
    return cast("Mapping[str, Tensor]", tensors).items() if isinstance(tensors, Mapping) else tensors


def read_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a file, or of a folder with one (or an index of several), read when they are asked for.

    Raises:
        ValueError: There is no such file, it is damaged, or it holds anything but tensors.
    """
    yield from TensorFiles(path).items()


class TensorFiles(Mapping[str, Tensor]):
    """The tensors of a file or folder under their names, each read when it is asked for, on the CPU.

    Raises:
        ValueError: As `read_tensors`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._unpickled: dict[Path, dict[str, Tensor]] = {}
        self._locations: dict[str, Path] = {}
        index = next((path / name for name in INDEXES if (path / name).is_file()), None)
        for file in tensor_files(path):
            self._locations |= dict.fromkeys(self._names(file), file)
        if not self._locations:
            raise ValueError(f"{path}: found a file without tensors, expected some")
        if index is not None:
            for name, file in weight_map(index).items():
                if self._locations.get(name) != path / file:
                    raise ValueError(f"{index}: names tensor {name!r}, expected to find it in {file}")

    def _names(self, file: Path) -> list[str]:
        if file.suffix in PICKLES:
            self._unpickled[file] = _unpickle(file)
            return list(self._unpickled[file])
        return list(_open_safetensors(file).keys())

    def __getitem__(self, name: str) -> Tensor:
        file = self._locations[name]
        if file in self._unpickled:
            return self._unpickled[file][name]
        # Opened anew: a file is mapped, and as long as it is open all that was ever read of it stays in memory.
        return _open_safetensors(file).get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._locations)

    def __len__(self) -> int:
        return len(self._locations)


def tensor_files(path: Path) -> list[Path]:
    """The files that hold the tensors of `path`, itself a file or a folder.

    Raises:
        ValueError: There are none.
    """
    if path.is_file():
        if path.suffix != ".safetensors" and path.suffix not in PICKLES:
            raise ValueError(f"{path}: found a file ending in {path.suffix!r}, expected .safetensors or .bin")
        return [path]
    if not path.exists():
        raise ValueError(f"{path}: not found, expected a file of tensors or a folder with one")
    for whole, index in zip(WHOLE, INDEXES, strict=True):
        if (path / index).is_file():
            shards = [path / name for name in sorted(set(weight_map(path / index).values()))]
            for shard in shards:
                if not shard.is_file():
                    raise ValueError(f"{path / index}: names {shard.name}, which is not in the folder")
            return shards
        if (path / whole).is_file():
            return [path / whole]
    raise ValueError(f"{path}: found no tensors, expected one of {', '.join([*WHOLE, *INDEXES])}")


def _open_safetensors(file: Path) -> safe_open:
    check_regular(file, None)
    try:
        return safe_open(file, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file}: cannot be read as safetensors ({error}), the file is damaged or cut") from None


def _unpickle(file: Path) -> dict[str, Tensor]:
    # This variable overrules weights_only=True, and unpickling would run what the file says.
    forced = os.environ.pop(FORCE_PICKLE, None)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        inside = found.group(1) if found else "something that is no tensor"
        raise ValueError(f"{file}: refused, it contains {inside}, expected nothing but tensors") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{file}: cannot be read ({reason}), the file is damaged or cut") from None
    finally:
        if forced is not None:
            os.environ[FORCE_PICKLE] = forced
    if not isinstance(content, dict):
        raise ValueError(f"{file}: found a {type(content).__name__}, expected a flat mapping of names to tensors")
    # LAVIS keeps a model beside its optimizer and settings.
    content = content["model"] if isinstance(content.get("model"), dict) else content
    for name, value in content.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{file}: {name!r} is a {type(value).__name__}, expected a flat mapping to tensors")
    return content


def _shards(source: Iterable[tuple[str, Tensor]], limit: int) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in source:
        tensor = tensor.detach().cpu().contiguous()
        # safetensors refuses views and tensors that share memory.
        shared = any(tensor.data_ptr() == other.data_ptr() for other in shard.values())
        if shared or tensor.untyped_storage().nbytes() != tensor.nbytes:
            tensor = tensor.clone()
        if shard and size + tensor.nbytes > limit:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor
        size += tensor.nbytes
    yield shard


def _save(beside: Path, total: int, path: Path, save: Callable[[Path], None]) -> int:
    with writing(path, total):
        # safetensors writes for its owner alone; the mode of any other file is what the user's mask leaves of it.
        beside.touch()
        mode = beside.stat().st_mode & 0o777
        save(beside)
        beside.chmod(mode)
        with beside.open("rb") as stream:
            os.fsync(stream.fileno())
    return total


def _cut(layout: Layout, limit: int) -> Iterator[list[str]]:
    """Names of one file after the other, none of which is larger than `limit` if it holds several tensors."""
    names: list[str] = []
    total = 0
    for name, each in layout.items():
        if names and total + size(each) > limit:
            yield names
            names, total = [], 0
        names.append(name)
        total += size(each)
    yield names


def _publish(path: Path, written: list[tuple[Path, list[str]]], total: int) -> list[Path]:
    """Renames the shards to their final names, the index last, and removes shards of an earlier save."""
    index = path.with_name(f"{path.name}.index.json")
    count = len(written)
    names = [f"{path.stem}-{i:05d}-of-{count:05d}{path.suffix}" for i in range(1, count + 1)]
    final = [path] if count == 1 else [path.with_name(name) for name in names]
    stale = {*path.parent.glob(f"{path.stem}-*-of-*{path.suffix}"), path, *([index] if count == 1 else [])}
    for (beside, _), shard in zip(written, final, strict=True):
        beside.rename(shard)
    if count > 1:
        weight_map = {name: shard.name for (_, held), shard in zip(written, final, strict=True) for name in held}
        write_text(index, json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2) + "\n")
    for old in stale - set(final):
        old.unlink(missing_ok=True)
    sync_folder(path.parent)
    return final


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.writing")


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder last through a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
