"""Webdataset tars: the members of one key (`000031234.jpg`, `000031234.json`) are a record.

A tar is read once, to find its members; pictures are then read where they stand.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from data_modules.containers.offset_index import CACHED_FROM, Arrays, built, fingerprint, key_of, texts, texts_in
from data_modules.containers.protocol import Cut, FilesOfRecords, StoredImage
from data_modules.containers.reading import FILES, RecordError, parse
from lightning_mllm.contracts import ImageRef

PICTURES = ("bmp", "gif", "jpeg", "jpg", "png", "tif", "tiff", "webp")
TEXTS = ("caption", "cls", "text", "transcript", "txt")
"""Extensions of members that are texts."""
MAX_MEMBER = 1 << 26
"""Bytes of a .json or text member."""
END, BLOCK, PADDING = 512, 1 << 20, 1 << 28
"""Bytes of zeros at the end of a tar, of what is read at once behind it, and of all that may be there."""


class Member(NamedTuple):
    """A file in a tar."""

    name: str
    offset: int
    size: int

    @property
    def key(self) -> str:
        """Folder and name up to the first dot."""
        return str(PurePosixPath(self.name).with_name(PurePosixPath(self.name).name.split(".")[0]))

    @property
    def extension(self) -> str:
        """Behind the first dot, in lower case: 'jpg', 'seg.png'."""
        return PurePosixPath(self.name).name.partition(".")[2].lower()


class Shard(NamedTuple):
    """A tar to read."""

    path: Path
    cut: Cut


class Tars(FilesOfRecords):
    """Records of tars. One is the object of its .json member, with what else is beside it:

        key     the members' common name, where the object has none
        txt     the text of a member with this extension, or another one of TEXTS
        image   the name of its picture, or a list of their names, where the object says nothing about `image` or
                `images`

    `images` has the pictures by the members' names without their folders.
    """

    def __init__(self, paths: Sequence[Path], cut: Cut = "refuse") -> None:
        super().__init__(paths, cut)
        self.key = key_of("tar", 1, cut, [fingerprint(path) for path in self.paths])
        shards = [Shard(path, cut) for path in self.paths]
        shifts = {"first": "offset", "name": "names"}
        large = sum(path.stat().st_size for path in self.paths) >= CACHED_FROM
        found = built(self.key, shards, members_of, shifts, kept=large)
        self._first, self._name, self._names = found["first"], found["name"], found["names"]
        self._offsets, self._sizes = found["offset"], found["size"]
        self._counted(found["count"])
        self.left_out += texts_in(found["left_out"])

    def _members(self, index: int) -> list[Member]:
        first = int(self._first[index])
        end = int(self._first[index + 1]) if index + 1 < len(self) else len(self._offsets)
        return [
            Member(self._member_name(member), int(self._offsets[member]), int(self._sizes[member]))
            for member in range(first, end)
        ]

    def _member_name(self, member: int) -> str:
        begin = int(self._name[member])
        end = int(self._name[member + 1]) if member + 1 < len(self._name) else len(self._names)
        return self._names[begin:end].tobytes().decode("utf-8", "surrogateescape")

    def _place(self, file: int, number: int) -> str:
        first = int(self._first[int(self._firsts[file]) + number])
        return Member(self._member_name(first), 0, 0).key

    def place(self, index: int) -> str:
        file, number = self._located(index)
        return f"{self.paths[file].name}: {self._place(file, number)}"

    def __getitem__(self, index: int) -> object:
        path, members = self.paths[self._located(index)[0]], self._members(index)
        by_extension = {member.extension: member for member in members}
        record: object = {}
        if "json" in by_extension:
            record = parse(_content(path, by_extension["json"]))
        if not isinstance(record, dict):
            return record
        record = {"key": members[0].key, **record}
        for extension in sorted(TEXTS & by_extension.keys()):
            try:
                record.setdefault(extension, _content(path, by_extension[extension]).decode("utf-8"))
            except UnicodeDecodeError as error:
                raise RecordError(
                    f"'{extension}' has a byte that is not UTF-8 at offset {error.start}, expected UTF-8 text"
                ) from None
        if "image" not in record and "images" not in record and (names := list(self.images(index))):
            record["image"] = names[0] if len(names) == 1 else names
        return record

    def images(self, index: int) -> Mapping[str, ImageRef]:
        path = self.paths[self._located(index)[0]]
        return {
            PurePosixPath(each.name).name: StoredImage(path, each.offset, each.size, each.name)
            for each in self._members(index)
            if each.extension.rpartition(".")[2] in PICTURES
        }


def _content(path: Path, member: Member) -> bytes:
    if member.size > MAX_MEMBER:
        raise RecordError(f"{member.name} has {member.size} bytes, expected at most {MAX_MEMBER}")
    return FILES.read(path, member.offset, member.size)


def members_of(shard: Shard) -> Arrays:
    """The members of a tar, those of one key behind one another, in the order in which the keys come first."""
    records: dict[str, dict[str, Member]] = {}
    left_out = list[str]()
    try:
        for member in _read(shard.path):
            record = records.setdefault(member.key, {})
            if member.extension in record:
                raise ValueError(f"{shard.path}: found the member {member.name} twice, expected different ones")
            record[member.extension] = member
    except _Cut as cut:
        if shard.cut == "refuse":
            raise ValueError(f"{cut}, expected a whole one; `cut: use` takes the records before it") from None
        *whole, last = records or [""]
        # The last record may lack a member: it is kept if it has those of the one before.
        if records and (not whole or records[last].keys() < records[whole[-1]].keys()):
            del records[last]
        left_out.append(f"{cut}; the records before it are used")
    members = [member for record in records.values() for member in record.values()]
    names = [member.name.encode("utf-8", "surrogateescape") for member in members]
    return {
        "first": _begins([len(record) for record in records.values()]),
        "count": np.array([len(records)]),
        "offset": np.array([member.offset for member in members], dtype=np.int64),
        "size": np.array([member.size for member in members], dtype=np.int64),
        "name": _begins([len(name) for name in names]),
        "names": np.frombuffer(b"".join(names), dtype=np.uint8),
        "left_out": texts(left_out),
    }


def _begins(lengths: Sequence[int]) -> np.ndarray:
    """Where each of things of some lengths begins, put behind one another."""
    return np.cumsum([0, *lengths[:-1]], dtype=np.int64) if lengths else np.zeros(0, dtype=np.int64)


class _Cut(ValueError):
    """The end of an archive is missing."""


def _read(path: Path) -> Iterator[Member]:
    """The files of a tar that belong to records."""
    size, end = path.stat().st_size, 0
    try:
        with tarfile.open(path, "r:") as archive:
            for each in archive:
                if each.issparse():
                    raise ValueError(f"{path}: found the sparse file {each.name}, expected files stored whole")
                end = each.offset_data + -(-each.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                if end > size:
                    raise _Cut(f"{path}: found a tar that is cut off in {each.name}")
                name = PurePosixPath(each.name).name
                if each.isdir() or name.startswith((".", "__")):
                    continue
                if not name or not each.isreg():
                    kind = "link or device" if name else "file without a name,"
                    raise ValueError(f"{path}: found the {kind} '{each.name}', expected files alone")
                yield Member(each.name, each.offset_data, each.size)
    except tarfile.TarError as error:
        if not end and size and not _is_header(path, size):
            raise ValueError(f"{path}: found no tar ({error}), expected an uncompressed one") from None
        raise _Cut(f"{path}: found a tar that is cut off at offset {end} ({error})") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot read the file ({error.strerror or error})") from None
    if size < end + END or FILES.read(path, end, END).strip(b"\0"):
        raise _Cut(f"{path}: found a tar without its end at offset {end}")
    if size - end > PADDING:
        raise ValueError(f"{path}: found {size - end} bytes behind the end of the tar, expected at most {PADDING}")
    for place in range(end, size, BLOCK):
        if FILES.read(path, place, min(BLOCK, size - place)).strip(b"\0"):
            raise ValueError(
                f"{path}: found more behind the end of the tar at offset {end}, expected nothing; tars that were put"
                " behind one another must be files of their own"
            )


def _is_header(path: Path, size: int) -> bool:
    """Whether a file begins like a tar, though there may be less of it than a header."""
    return size < tarfile.BLOCKSIZE or FILES.read(path, 257, 5) == b"ustar"
