from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from data_modules.containers import Records, open_records
from data_modules.containers.reading import RecordError

ROWS: list[dict[str, Any]] = [
    {"id": k, "text": text, "n": [{"a": None if k else 1.5}]}
    for k, text in enumerate(["é", 'say "}]{[\\', "a\nb", "", "x" * 300])
]


def lines(path: Path, rows: list[Any]) -> Path:
    path = path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf\r\n" + b"".join(json.dumps(row).encode() + b"\r\n \r\n" for row in rows))
    return path


def listed(path: Path, rows: list[Any]) -> Path:
    path = path / "rows.json"
    path.write_text(json.dumps(rows, indent=1, ensure_ascii=False), "utf-8-sig")
    return path


def parquet(path: Path, rows: list[Any]) -> Path:
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path / "rows.parquet", row_group_size=2)
    return path / "rows.parquet"


def dataset(path: Path, rows: list[Any]) -> Path:
    import datasets

    bars = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    datasets.Dataset.from_list(rows).save_to_disk(str(path / "rows"))
    if bars:
        datasets.enable_progress_bars()
    return path / "rows"


def tar(path: Path, members: Mapping[str, bytes], name: str = "rows.tar") -> Path:
    with tarfile.open(path / name, "w") as archive:
        for each, content in members.items():
            info = tarfile.TarInfo(each)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path / name


def tarred(path: Path, rows: list[Any]) -> Path:
    return tar(path, {f"{k:05}.json": json.dumps({"key": "own", **row}).encode() for k, row in enumerate(rows)})


Write = Callable[[Path, list[Any]], Path]
FORMATS: dict[Write, str] = {
    lines: ":4",
    listed: "record 1",
    parquet: "row 1",
    dataset: "row 1",
    tarred: "rows.tar: 00001",
}


@pytest.mark.parametrize("write", FORMATS, ids=lambda each: each.__name__)
def test_records_are_what_was_written_wherever_they_are_asked_for(write: Write, tmp_path: Path) -> None:
    path = write(tmp_path, ROWS)
    records: Records = open_records(str(path))
    own = {"key": "own"} if write is tarred else {}
    assert [records[k] for k in (4, 0, 3, 2, 1)] == [{**own, **ROWS[k]} for k in (4, 0, 3, 2, 1)]
    assert len(records) == 5 and records.place(1) == FORMATS[write] and not records.images(1)
    assert records.where(1).startswith(str(path)) and records.where(1).endswith(FORMATS[write][-1])
    assert records.runs().sum() == 5 and records.key == open_records(path).key
    with pytest.raises(IndexError):
        records[5]


def test_several_files_are_one_list_whose_places_name_the_file(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / f"{name}0.jsonl").write_text(f'\n{{"id": "{name}"}}\n\n')
    records = open_records(f"{tmp_path}/*0.jsonl")
    assert [records[k] for k in range(2)] == [{"id": "a"}, {"id": "b"}]
    assert [records.place(k) for k in range(2)] == ["a0.jsonl:2", "b0.jsonl:2"]
    assert records.runs().tolist() == [1, 1]
    (tmp_path / "a1.jsonl").write_text("{}")
    assert len(open_records(f"{tmp_path}/a{{0..1}}.jsonl")) == 2


def test_lines_may_stand_in_a_json_file_and_a_list_may_be_empty(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"id": 1}\n{"id": 2}\n')
    assert open_records(tmp_path / "a.json")[1] == {"id": 2}
    (tmp_path / "b.json").write_text(" [ ] \n")
    assert len(open_records(tmp_path / "b.json")) == 0


def test_a_file_that_another_one_took_the_place_of_is_read_anew(tmp_path: Path) -> None:
    path, other = tmp_path / "a.jsonl", tmp_path / "b"
    path.write_text('{"a": 1}\n{"a": 2}\n')
    assert open_records(path)[0] == {"a": 1}
    other.write_text('{"b": 12}\n\n\n{"b": 3}\n')
    other.replace(path)
    records = open_records(path)
    assert [records[0], records[1]] == [{"b": 12}, {"b": 3}] and records.place(1) == ":4"


def test_a_damaged_line_is_the_matter_of_its_record(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(
        b'{"a": NaN}\n{"a"\n"\xff"\n' + b"[" * 100_000 + b"\n[" + b"9" * 5000 + b"]\n1\n"
    )
    records = open_records(tmp_path / "a.jsonl")
    rules = ("found NaN", "expected JSON", "not UTF-8", "too deep", "number that is too long")
    for index, rule in enumerate(rules):
        with pytest.raises(RecordError, match=rule):
            records[index]
    assert records[5] == 1


MEMBERS = {
    "a/1.jpg": b"one",
    "a/1.txt": "é".encode(),
    "a/1.json": b'{"id": 7}',
    "a/2.left.png": b"left",
    "a/2.right.PNG": b"right!",
    "__meta__": b"",
}


def test_a_record_of_a_tar_is_its_json_and_what_lies_beside_it(tmp_path: Path) -> None:
    records = open_records(tar(tmp_path, MEMBERS))
    assert records[0] == {"key": "a/1", "id": 7, "txt": "é", "image": "1.jpg"}
    assert records[1] == {"key": "a/2", "image": ["2.left.png", "2.right.PNG"]}
    images = {name: image.read(6) for index in range(2) for name, image in records.images(index).items()}
    assert images == {"1.jpg": b"one", "2.left.png": b"left", "2.right.PNG": b"right!"}
    assert records.images(1)["2.left.png"].name == f"{tmp_path}/rows.tar:a/2.left.png"
    with pytest.raises(ValueError, match=r"rows.tar:a/2.left.png: found 4 bytes, expected at most 3"):
        records.images(1)["2.left.png"].read(3)


@pytest.mark.parametrize("write", [parquet, dataset], ids=lambda each: each.__name__)
def test_pictures_in_a_table_are_read_when_they_are_asked_for(write: Write, tmp_path: Path) -> None:
    rows = [
        {"image": {"bytes": b"one", "path": None}, "more": [b"a", b"bc"], "id": 1},
        {"image": {"bytes": None, "path": "x.jpg"}, "more": [], "id": 2},
        {"image": {"bytes": b"three", "path": "y"}, "more": [b"d"], "id": 3},
    ]
    records = open_records(write(tmp_path, rows))
    assert records[0] == {"image": "image", "more": ["more/0", "more/1"], "id": 1}
    assert records[1] == {"image": "x.jpg", "more": [], "id": 2} and not records.images(1)
    assert {name: each.read(9) for name, each in records.images(0).items()} == {
        "image": b"one",
        "more/0": b"a",
        "more/1": b"bc",
    }
    assert records[2] == {"image": "image", "more": ["more/0"], "id": 3}
    with pytest.raises(ValueError, match=r"row 2: image: found 5 bytes, expected at most 4"):
        records.images(2)["image"].read(4)


def bad(name: str, content: bytes) -> Callable[[Path], Any]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def two_tables(folder: Path) -> list[Path]:
    named, held = folder / "named", folder / "held"
    named.mkdir()
    held.mkdir()
    return [parquet(named, [{"image": "a.jpg"}]), parquet(held, [{"image": b"abc"}])]


def two_tars(folder: Path) -> Path:
    path = tar(folder, {"1.json": b"{}"})
    path.write_bytes(path.read_bytes() * 2)
    return path


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda folder: folder / "none.json", "none.json not found"),
        (lambda folder: [], "found no file of records"),
        (bad("a.csv", b""), "found a '.csv' file, expected one of .json, "),
        (bad("a.tar.gz", b""), "unpack it first"),
        (bad("a.json", b'{"a": 1}'), "found an object, expected a list of records"),
        (bad("a.json", b""), "found nothing, expected a list"),
        (bad("a.json", b'[1, {"a": }]'), r"a.json: record 1: line 1, column 11: expected JSON \(Expecting value\)"),
        (bad("a.json", b"[1,\n2 3]"), "record 2: line 2, column 3: expected JSON \\('3' in place of"),
        (bad("a.json", b"[1] 2]"), "found more at offset 4, expected nothing behind"),
        (bad("a.json", b"[" * 100_000 + b"]"), "too deep"),
        (bad("a.parquet", b"PAR1" * 9), "a.parquet: found no table"),
        (bad("a.arrow", b"no" * 99), "a.arrow: found no dataset"),
        (bad("a.tar", b"no" * 999), "a.tar: found no tar"),
        (lambda folder: [bad("a.jsonl", b"1")(folder), bad("b.json", b"[]")(folder)], "b.json: found another format"),
        (lambda folder: tar(folder, {"1.jpg": b"", "1.JPG": b""}), "found the member 1.JPG twice"),
        (lambda folder: tar(folder, {"": b""}), "found the file without a name, ''"),
        (two_tables, "rows.parquet: found 'image' of type binary, expected string as in .*named/rows.parquet"),
        (two_tars, "rows.tar: found more behind the end of the tar at offset 1024, expected"),
    ],
)
def test_what_is_no_file_of_records_is_named(make: Callable[[Path], Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        open_records(make(tmp_path))
