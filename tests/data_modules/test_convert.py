"""`mllm data convert` as a user calls it: files, sentences, what is lost, and what is left behind when it fails."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from data_modules.containers import open_records
from data_modules.convert import main
from lightning_mllm import cli
from tests.data_modules.dialects.samples import BY_HAND, PICTURES
from tests.data_modules.dialects.test_dialects import pictures
from tests.data_modules.files import write

ASKED = [
    {"from": "human", "value": "<image>\nWhat?"},
    {"from": "gpt", "value": "Red.", "loss": False},
    {"from": "human", "value": "Sure?"},
    {"from": "gpt", "value": "Yes."},
]
WORDS = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]
RECORDS: list[dict[str, Any]] = [
    {"id": "a", "image": "red.png", "conversations": ASKED},
    {"id": "b", "image": list(PICTURES), "conversations": [*BY_HAND["llava"]["conversations"]], "source": "mine"},
    {"conversations": WORDS},
]


def run(folder: Path, *arguments: str, given: Any = None) -> str:
    """What the verb says; IN is in.json, and OUT comes first of the arguments."""
    if not (folder / "in.json").exists() or given is not None:
        write(folder / "in.json", RECORDS if given is None else given)
    out, *others = arguments
    main([str(folder / "in.json"), "--to", str(folder / out), "--images", pictures(folder / "images"), *others])
    return ""


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_there_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names stay names in files of JSON, and the records are the same again."""
    for dialect in ("user_assistant", "sharegpt", "openai", "chat"):
        for suffix in ("json", "jsonl"):
            run(tmp_path, f"{dialect}.{suffix}", "--dialect", dialect)
            main([str(tmp_path / f"{dialect}.{suffix}"), "--to", str(tmp_path / "back.json"), "--dialect", "llava"])
            assert json.loads((tmp_path / "back.json").read_text("utf-8")) == RECORDS
            (tmp_path / "back.json").unlink()
    assert capsys.readouterr().out.splitlines()[:2] == [
        f"read 3 records of {tmp_path}/in.json as llava",
        f"wrote 3 records with 3 images to {tmp_path}/user_assistant.json as user_assistant",
    ]


@pytest.mark.parametrize(("suffix", "dialect"), [("parquet", "chat"), ("tar", "llava"), ("jsonl", "openai_parts")])
def test_files_that_hold_their_images(
    suffix: str, dialect: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The images come out again as files, byte by byte, under other names."""
    run(tmp_path, f"held.{suffix}", "--dialect", dialect)
    shutil.rmtree(tmp_path / "images")
    main([str(tmp_path / f"held.{suffix}"), "--to", str(tmp_path / "back.json"), "--dialect", "llava"])
    said = capsys.readouterr().out
    assert f"their images are in {tmp_path}/back_images" in said
    assert ("lost: names of images (3)" in said) == (suffix != "parquet")
    back = json.loads((tmp_path / "back.json").read_text("utf-8"))
    assert back[0]["image"] == "000000000.png" and back[1]["image"] == ["000000001_0.png", "000000001_1.jpg"]
    assert [{**record, "image": None} for record in back] == [{**record, "image": None} for record in RECORDS]
    found = [(tmp_path / "back_images" / name).read_bytes() for name in ("000000000.png", *back[1]["image"])]
    assert found == [PICTURES["red.png"], *PICTURES.values()]
    assert left(tmp_path) == {"in.json", f"held.{suffix}", "back.json", "back_images"}


def test_a_table_is_one_that_datasets_reads(tmp_path: Path) -> None:
    import pyarrow.parquet
    from datasets import Features, Image, List

    run(tmp_path, "a.parquet", "--dialect", "chat")
    table = pyarrow.parquet.read_table(tmp_path / "a.parquet")
    assert Features.from_arrow_schema(table.schema)["images"] == List(Image())
    assert [each["path"] for row in table["images"].to_pylist() if row for each in row] == ["red.png", *PICTURES]


def test_what_a_dialect_cannot_say_is_not_lost_silently(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError) as error:
        run(tmp_path, "a.jsonl", "--dialect", "alpaca")
    assert str(error.value) == (
        f"{tmp_path}/in.json: record 0 (id a): alpaca cannot say that a turn is not learned; "
        "--lossy writes the record without it"
    )
    assert left(tmp_path) == {"in.json", "images"}
    run(tmp_path, "a.jsonl", "--dialect", "alpaca", "--lossy")
    assert "lost: that a turn is not learned (1)" in capsys.readouterr().out
    assert json.loads((tmp_path / "a.jsonl").read_text().splitlines()[0])["history"] == [["<image>\nWhat?", "Red."]]


@pytest.mark.parametrize(
    ("change", "dialect", "lost"),
    [
        ({"output": "x"}, "alpaca", "its key 'output'"),
        ({"tools": ""}, "openai", ""),
        ({"conversations": [{**WORDS[0], "name": "Ann"}, WORDS[1]]}, "openai", "the key 'name' of a turn"),
        ({"history": [["a", "b"]]}, "alpaca", "its turns"),
    ],
)
def test_keys_that_the_other_dialect_reads_otherwise(change: Any, dialect: str, lost: str, tmp_path: Path) -> None:
    record = {"conversations": WORDS, **change}
    if not lost:
        run(tmp_path, "a.jsonl", "--dialect", dialect, given=[record])
        return
    with pytest.raises(ValueError) as error:
        run(tmp_path, "a.jsonl", "--dialect", dialect, given=[record])
    assert f"record 0: {dialect} cannot say {lost}; --lossy" in str(error.value)


def test_fields_of_several_types(tmp_path: Path) -> None:
    """Lines hold them; a column of a table is of one type, so that ids become texts, and other keys are refused."""
    records = [{"id": id, "conversations": WORDS} for id in (1, "b", 2.5)]
    run(tmp_path, "a.jsonl", given=records)
    assert [json.loads(line)["id"] for line in (tmp_path / "a.jsonl").read_text().splitlines()] == [1, "b", 2.5]
    run(tmp_path, "a.parquet")
    table = open_records(str(tmp_path / "a.parquet"))
    assert [table[k]["id"] for k in range(3)] == ["1", "b", "2.5"]  # pyright: ignore[reportIndexIssue]
    with pytest.raises(ValueError, match=r"in\.json: 'score' cannot be a column of a table .*; --lossy leaves the key"):
        run(tmp_path, "b.parquet", given=[{**records[0], "score": 1}, {**records[1], "score": "x"}])
    run(tmp_path, "b.parquet", "--lossy")
    assert "score" not in open_records(str(tmp_path / "b.parquet"))[0]  # pyright: ignore[reportOperatorIssue]
    with pytest.raises(ValueError, match=r"'meta' cannot be a column of a table .it is an object without keys"):
        run(tmp_path, "c.parquet", given=[{**records[0], "meta": {}}])


@pytest.mark.parametrize("out", ["a.json", "a.jsonl", "a.tar"])
def test_a_number_that_json_cannot_read_again_is_refused(out: str, tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text(json.dumps([{"id": 4, "conversations": WORDS, "score": 12345}]))
    (tmp_path / "in.json").write_text((tmp_path / "in.json").read_text().replace("12345", "1e999"))
    with pytest.raises(ValueError, match=r"record 0 \(id 4\): cannot be written \(Out of range float"):
        run(tmp_path, out)
    assert not (tmp_path / out).exists()


def test_bad_records_stop_or_go_to_quarantine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """T19's two ways: strict with exit code 2, and lenient with a file of what is wrong."""
    bad = {"id": "x", "conversations": WORDS[::-1]}
    lines = [json.dumps(each) for each in (RECORDS[2], bad, RECORDS[2])]
    (tmp_path / "in.jsonl").write_text("\n".join([*lines, '{"id": "y", "conv', lines[0]]) + "\n")
    given = ["data", "convert", str(tmp_path / "in.jsonl"), "--to", str(tmp_path / "out.parquet")]
    with pytest.raises(SystemExit) as left_with:
        cli.main(given)
    rule = f"{tmp_path}/in.jsonl:2 (id x): read as llava: turn 0 is of assistant, expected user"
    assert left_with.value.code == 2 and capsys.readouterr().err == f"mllm: {rule}\n"
    assert left(tmp_path) == {"in.jsonl"}
    cli.main([*given, "--quarantine", str(tmp_path / "bad.jsonl")])
    said = capsys.readouterr().out
    assert "wrote 3 records with 0 images" in said and f"left out 2 records that break a rule: {tmp_path}/bad" in said
    aside = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert aside[0] == {"error": rule, "place": ":2", "record": bad}
    assert (
        aside[1].keys() == {"error", "place"}
        and ":4: read as llava: line 1, column 13: expected JSON" in aside[1]["error"]
    )


def test_repairs_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [
        {"conversations": [*WORDS, WORDS[0]]},
        {"conversations": WORDS},
        {"image": "red.png", "conversations": WORDS},
    ]
    run(tmp_path, "a.json", "--turns", "drop_trailing_user,join_same_roles", "--marks", "front", given=records)
    said = capsys.readouterr().out
    assert "changed: trailing user dropped (1)" in said and "changed: marks put in front (1)" in said
    written = json.loads((tmp_path / "a.json").read_text())
    assert written[0] == {"conversations": WORDS} and written[2]["conversations"][0]["value"] == "<image>\nHi"


def test_names_and_images_in_one_file(tmp_path: Path) -> None:
    """A file of JSON names images of one folder; tars and tables take both kinds."""
    from tests.data_modules.dialects.samples import URLS

    records = [RECORDS[0], {**RECORDS[0], "id": "c", "image": URLS["red.png"]}]
    with pytest.raises(
        ValueError, match=r"record 1: holds an image, and record 0 names one, expected names alone or none"
    ):
        run(tmp_path, "a.json", given=records)
    assert left(tmp_path) == {"in.json", "images"}
    for suffix in ("tar", "parquet"):
        run(tmp_path, f"a.{suffix}")
        table = open_records(str(tmp_path / f"a.{suffix}"))
        held = [[each.read(10_000) for each in table.images(k).values()] for k in range(2)]
        assert held == [[PICTURES["red.png"]]] * 2


def test_a_tar_needs_its_images(tmp_path: Path) -> None:
    write(tmp_path / "in.json", RECORDS)
    with pytest.raises(ValueError, match=r"names the image 'red.png', expected none because no images folder is given"):
        main([str(tmp_path / "in.json"), "--to", str(tmp_path / "a.tar")])
    with pytest.raises(ValueError, match=r"gone.png not found"):
        run(tmp_path, "a.tar", given=[{**RECORDS[0], "image": "gone.png"}])
    assert left(tmp_path) == {"in.json", "images"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["in.json"], "data convert: the following arguments are required: --to"),
        (
            ["in.json", "--to", "out.csv"],
            "found --to out.csv, expected a name that ends with .json, .jsonl, .parquet, .tar",
        ),
        (["in.json", "--to", "in.json"], "data convert: in.json exists, expected a name that is free"),
        (["gone.json", "--to", "a.json"], "gone.json not found"),
        (["in.json", "--to", "a.json", "--dialect", "x"], "dialect: found 'x', expected one of llava"),
        (
            ["in.json", "--to", "a.json", "--from-dialect", "alpaca"],
            "in.json: record 0 (id a): read as alpaca: has no 'in",
        ),
        (["in.json", "--to", "a.json", "--turns", "x"], "turns: found 'x', expected refuse or some of"),
        (["in.json", "--to", "a.json", "--quarantine", "./a.json"], "found a.json as --to and --quarantine"),
        (["in.json", "--to", "a.json", "--images", "gone"], "gone not found"),
        (["in.json", "--to", "a.json", "--froom"], "data convert: unrecognized arguments: --froom"),
        (["empty.json", "--to", "a.json"], "empty.json: looked at 0 records"),
        (["empty.json", "--to", "a.json", "--from-dialect", "llava"], "empty.json: found no record to write"),
    ],
)
def test_wrong_calls(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "in.json", RECORDS)
    write(tmp_path / "empty.json", [])
    with pytest.raises(SystemExit) as left_with:
        cli.main(["data", "convert", *arguments])
    said = capsys.readouterr().err
    assert left_with.value.code == 2 and said.startswith("mllm: ") and sentence in said and said.count("\n") == 1
    assert left(tmp_path) == {"in.json", "empty.json"}


def test_help_names_every_dialect(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left_with:
        cli.main(["data", "convert", "--help"])
    said = capsys.readouterr().out
    assert left_with.value.code == 0
    assert all(f"  {name}\n" in said for name in BY_HAND) and max(map(len, said.splitlines())) <= 120
