"""A file whose end is missing (MLLM_FULL=1 cuts each at ten places, and larger ones)."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from data_modules.containers import open_records
from data_modules.containers.reading import RecordError
from tests.data_modules.containers.test_opening import Write, lines, listed, parquet, tarred

FULL = bool(os.environ.get("MLLM_FULL"))
CUTS = 10 if FULL else 3
ROWS = [{"id": k, "text": "words é " * (k % 7)} for k in range(20_000 if FULL else 60)]


@pytest.mark.fault
@pytest.mark.parametrize("write", [lines, listed, tarred], ids=lambda each: each.__name__)
def test_the_records_before_a_cut_are_used_or_the_file_is_refused(
    write: Write, tmp_path: Path, fault_row: Callable[[str, str, str], None]
) -> None:
    whole = write(tmp_path, ROWS)
    content, random = whole.read_bytes(), Random(1)
    records = open_records(whole)
    expected = [records[k] for k in range(len(records))]
    for number in range(CUTS):
        cut = random.randrange(len(content) // 20, len(content) * 19 // 20)
        path = whole.with_name(f"cut{number}{whole.suffix}")
        path.write_bytes(content[:cut])
        begin = time.process_time()
        read = open_records(path, cut="use")
        found = [read[k] for k in range(len(read))]
        used = time.process_time() - begin
        assert found == expected[: len(found)]
        # Of complete records at most the last is lost, where nothing tells that it was its shard's last member.
        complete = sum(end <= cut for end in ends(whole, content, write))
        assert complete - 1 <= len(found) <= complete if write is tarred else len(found) == complete
        if read.left_out:
            assert str(path) in read.left_out[0] and (
                "cut off" in read.left_out[0] or "without its end" in read.left_out[0]
            )
            with pytest.raises(ValueError, match=rf"{path.name}.*`cut: use` takes"):
                open_records(path)
        else:  # cut behind a whole line
            assert write is lines and len(open_records(path)) == len(found)
        assert not FULL or used < 10  # T21, of one core
    kind = "JSON lines" if write is lines else "a JSON list" if write is listed else "a tar"
    fault_row("T21", f"{CUTS} of {CUTS}", f"{kind} cut: the records before the cut, or a sentence")


def ends(path: Path, content: bytes, write: Write) -> list[int]:
    """Where each record ends."""
    if write is lines:
        return [k for k in range(1, len(content)) if content[k - 1 : k] == b"}" and content[k : k + 1] == b"\r"]
    if write is listed:
        found, place = list[int](), 0
        for row in ROWS:
            text = json.dumps(row, indent=1, ensure_ascii=False).replace("\n", "\n ").encode()
            place = content.index(text, place) + len(text)
            found.append(place)
        return found
    import tarfile

    with tarfile.open(path) as archive:
        return [each.offset_data + -(-each.size // 512) * 512 for each in archive]


def test_a_cut_table_has_lost_its_directory_and_is_left_out(tmp_path: Path) -> None:
    whole = parquet(tmp_path, ROWS)
    content, random = whole.read_bytes(), Random(1)
    for number in range(CUTS):
        path = tmp_path / f"cut{number}.parquet"
        path.write_bytes(content[: random.randrange(len(content))])
        with pytest.raises(ValueError, match=rf"{path.name}: found no table"):
            open_records(path)
        records = open_records([path, whole], cut="use")
        assert len(records) == len(ROWS) and path.name in records.left_out[0]


def test_a_tar_keeps_its_last_record_where_it_has_all_members(tmp_path: Path) -> None:
    from tests.data_modules.containers.test_opening import tar

    members = {f"{k}.{kind}": b"{}" for k in range(3) for kind in ("jpg", "json")}
    whole = tar(tmp_path, members).read_bytes()
    path = tmp_path / "cut.tar"
    for blocks, kept in ((12, 3), (11, 2), (10, 2), (9, 2), (8, 2), (7, 1), (2, 0), (0, 0)):
        path.write_bytes(whole[: 512 * blocks])
        assert len(open_records(path, cut="use")) == kept, blocks


def test_a_list_damaged_within_is_refused_or_one_record_of_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"id": 1}, {"id": }, {"id": 3}]')
    with pytest.raises(ValueError, match=r"a.json: record 1: line 1, column 20: expected JSON \(Expecting value\)$"):
        open_records(tmp_path / "a.json")
    records = open_records(tmp_path / "a.json", cut="use")
    assert len(records) == 3 and records[2] == {"id": 3}
    with pytest.raises(RecordError, match=r"expected JSON \(Expecting value\)$"):
        records[1]
    # Where brackets do not tell where it ends, no record behind it is guessed.
    for bad in ('{"id": [}', '{"id": "}', '{"id": 2} 3', "2 3"):
        (tmp_path / "a.json").write_text(f'[{{"id": 1}}, {bad}, {{"id": 3}}]')
        with pytest.raises(ValueError, match=r"a.json: record [12]: .*expected JSON"):
            open_records(tmp_path / "a.json", cut="use")


def test_a_list_may_be_cut_behind_a_bracket_of_a_record(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"id": 1}, {"box": [1, 2]')
    with pytest.raises(ValueError, match="found a list that is cut off there"):
        open_records(path)
    assert len(open_records(path, cut="use")) == 1
