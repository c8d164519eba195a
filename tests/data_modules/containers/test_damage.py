"""Flipped bits anywhere in files of records: whole records, or a sentence that names the file.

They are read in a process of their own: a damaged table must not end the one that reads it.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch

from data_modules.containers import open_records
from data_modules.sources.any_conversations import Conversations
from tests.data_modules.containers.test_opening import tarred

FLIPS = 100 if os.environ.get("MLLM_FULL") == "1" else 12
ROWS = [
    {
        "id": f"record {k}",
        "conversations": [{"from": "human", "value": f"What is {k}?"}, {"from": "gpt", "value": f"It is {k % 7}."}],
    }
    for k in range(40)
]
TABLE = pyarrow.Table.from_pylist(ROWS)


def arrow(path: Path) -> None:
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, TABLE.schema) as writer:
        writer.write_table(TABLE, max_chunksize=20)


def tar(path: Path) -> None:
    tarred(path.parent, ROWS).rename(path)


def parquet(**options: Any) -> Callable[[Path], None]:
    return lambda path: pyarrow.parquet.write_table(TABLE, path, row_group_size=20, **options)


FILES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "parquet, dictionaries": (".parquet", parquet()),
    "parquet, plain pages": (".parquet", parquet(use_dictionary=False, compression="none")),
    "parquet, checksums": (".parquet", parquet(compression="none", write_page_checksum=True)),
    "arrow": (".arrow", arrow),
    "tar": (".tar", tar),
    "JSON lines": (".jsonl", lambda path: path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))),
    "JSON list": (".json", lambda path: path.write_text(json.dumps(ROWS))),
}


def records(path: Path, bad_records: str) -> tuple[list[object], list[str]]:
    """What can be read, and what is said of the rest."""
    source = Conversations(str(path), bad_records=bad_records)  # pyright: ignore[reportArgumentType]
    source.load()
    found, told = list[object](), list(source.skipped)
    for index in range(len(source)):
        try:
            found.append(source.sample(index, torch.Generator()).turns)
        except ValueError as error:
            assert "data_modules" in traceback.extract_tb(error.__traceback__)[-1].filename, error
            told.append(f"{source.where(index)}: {error}")
    return found, told


def judged(path: Path, bad_records: str, whole: list[object]) -> str:
    try:
        found, told = records(path, bad_records)
    except ValueError as error:
        told, found = [str(error)], None
        ours = "data_modules" in traceback.extract_tb(error.__traceback__)[-1].filename
        told = told if ours else []
    if any(path.name not in each or "\n" in each for each in told):
        return f"unnamed: {told[0]}"
    if told:
        return "told"
    if found is None:
        return "another error"
    return "read" if len(found) == len(whole) else "silent loss"


def in_a_child(work: Callable[[], object]) -> int:
    """How a process ended that was forked for some work."""
    if not (child := os.fork()):
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]


@pytest.mark.fault
@pytest.mark.parametrize("name", FILES)
def test_flipped_bits(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault_row: Callable[[str, str, str], None]
) -> None:
    monkeypatch.setenv("MLLM_CACHE", str(tmp_path / "cache"))
    suffix, write = FILES[name]
    write(path := tmp_path / f"whole{suffix}")
    content, random = path.read_bytes(), Random(0)
    whole, told = records(path, "refuse")
    assert len(whole) == len(ROWS) and not told
    judgements = tmp_path / "judgements.txt"

    def flip(number: int) -> str:
        # A third at the beginning and a third at the end, where headers and directories are.
        first, last = [(0, 600), (len(content) - 600, len(content)), (0, len(content))][number % 3]
        at, damaged = random.randrange(max(first, 0), min(last, len(content))), bytearray(content)
        damaged[at] ^= 1 << random.randrange(8)
        path = tmp_path / f"flipped{suffix}"
        path.write_bytes(damaged)
        return judged(path, ("refuse", "skip")[number // 3 % 2], whole)

    assert in_a_child(lambda: judgements.write_text("\n".join(map(flip, range(FLIPS))))) == 0
    kinds = Counter(judgements.read_text().split("\n"))
    assert kinds.total() == FLIPS and kinds.keys() <= {"told", "read"} and kinds["told"], kinds
    fault_row("T21", f"{FLIPS} of {FLIPS}", f"{name}, a bit flipped: a sentence with the file, or every record")


def test_where_pages_have_checksums_no_changed_text_is_read(tmp_path: Path) -> None:
    parquet(compression="none", write_page_checksum=True)(path := tmp_path / "t.parquet")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"What is 7?", b"What is 9?"))
    assert path.read_bytes() != content
    with pytest.raises(ValueError, match=r"t.parquet: row group 0: cannot read it \(.*checksum.*\)"):
        Conversations(str(path)).load()


def test_a_damaged_row_is_a_bad_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLLM_CACHE", str(tmp_path / "cache"))
    for suffix, write in (FILES["arrow"], FILES["parquet, plain pages"]):
        write(path := tmp_path / f"t{suffix}")
        path.write_bytes(path.read_bytes().replace(b"What is 7?", b"What \xff\xfe 7?"))
        with pytest.raises(ValueError, match=rf"t{suffix}: row 7: found a damaged row \(.*UTF8.*\), expected"):
            Conversations(str(path)).load()
        source = Conversations(str(path), bad_records="skip")
        source.load()
        assert len(source) == len(ROWS) - 1 and "row 7: found a damaged row" in source.skipped[0]


def test_records_of_a_list_that_are_no_json_are_left_out_alone(tmp_path: Path) -> None:
    good = json.dumps(ROWS[0])
    for bad in (
        '{"id": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"id": ' + "9" * 5000 + "}",
        '{"id": "a\x07b"}',
        '{\'id\': 1, "a": [1, "]"]}',
        '{"id": "\\x", }',
    ):
        path = tmp_path / "t.json"
        path.write_text(f"[{good},\n{bad} ,{good}]")
        with pytest.raises(ValueError, match=r"t\.json: record 1: "):
            Conversations(str(path)).load()
        source = Conversations(str(path), bad_records="skip")
        source.load()
        assert len(source) == 2 and len(source.skipped) == 1 and f"{path}: record 1: " in source.skipped[0]


def members(path: Path, *names: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> Path:
    """A tar of these members."""
    with tarfile.open(path, "w") as archive:
        for k, name in enumerate(names):
            member, content = tarfile.TarInfo(name), f"picture {k}".encode() if kind == tarfile.REGTYPE else b""
            member.type, member.linkname, member.size = kind, link, len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize(
    "names",
    [("a.jpg", "a.jpg"), ("a.jpg", "./a.jpg"), ("a.jpg", "a.JPG"), ("b/a.jpg", "b//a.jpg"), ("b/./a.png", "b/a.png")],
)
def test_two_members_of_one_name_are_refused(names: tuple[str, str], tmp_path: Path) -> None:
    """Whose pictures would be taken for one another's: what a tower made of one would be shown for the other."""
    with pytest.raises(ValueError, match=r"t\.tar: found the member .* twice, expected different ones"):
        open_records(members(tmp_path / "t.tar", *names))


def test_pictures_of_one_name_in_other_folders_or_tars_are_others(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    paths = [members(tmp_path / name, "one/a.jpg", "two/a.jpg") for name in ("t.tar", "other/t.tar")]
    records = open_records(paths)
    pictures = [each for k in range(len(records)) for each in records.images(k).values()]
    assert len({each.name for each in pictures}) == len(pictures) == 4
    assert [each.read(99) for each in pictures] == [b"picture 0", b"picture 1"] * 2


@pytest.mark.parametrize(
    ("kind", "link"),
    [(tarfile.SYMTYPE, "/etc/passwd"), (tarfile.LNKTYPE, "b.jpg"), (tarfile.CHRTYPE, ""), (tarfile.FIFOTYPE, "")],
)
def test_members_that_are_no_files_are_refused(kind: bytes, link: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"t\.tar: found the link or device 'a\.jpg', expected files alone"):
        open_records(members(tmp_path / "t.tar", "a.jpg", kind=kind, link=link))
