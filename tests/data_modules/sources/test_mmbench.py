from __future__ import annotations

import base64
import csv
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_modules.sources import MmBench
from data_modules.sources.mmbench import PASS
from tests.data_modules.sources.held_out import samples, turns

COLUMNS = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "source", "l2-category"]


def picture(shade: int = 0) -> str:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (shade, 9, 9)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def row(**changes: Any) -> dict[str, Any]:
    return {
        "index": 241,
        "question": "Which is right?",
        "hint": "",
        **{"A": "a cat", "B": "a dog", "C": "a bird", "D": ""},
        "answer": "B",
        "category": "identity_reasoning",
        "l2-category": "attribute_reasoning",
        "source": "scienceqa",
        "image": picture(),
        **changes,
    }


def write(path: Path, rows: list[dict[str, Any]], columns: list[str] = COLUMNS) -> str:
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns, delimiter="\t", extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)
    return str(path)


def test_missing_passes_are_made(tmp_path: Path) -> None:
    given = samples(MmBench(write(tmp_path / "dev.tsv", [row(), row(index=7, C="nan", answer="A", hint="It\nbarks.")])))
    assert [(each.id, each.references) for each in given] == [
        ("241", ("B",)),
        (f"{241 + PASS}", ("A",)),
        (f"{241 + 2 * PASS}", ("C",)),
        ("7", ("A",)),
        (f"{7 + PASS}", ("B",)),
    ]
    ends = "Answer with the option's letter from the given choices directly."
    assert turns(given[1]) == [f"<image>\nWhich is right?\nA. a dog\nB. a bird\nC. a cat\n{ends}", "A"]
    assert turns(given[3]) == [f"<image>\nIt\nbarks.\nWhich is right?\nA. a cat\nB. a dog\n{ends}", "A"]
    assert {each.question_type for each in given} == {"attribute_reasoning"} and given[0].task == "mmbench"
    first = samples(MmBench(write(tmp_path / "dev.tsv", [row()]), passes="first", kind="category"))
    assert [(each.id, each.question_type) for each in first] == [("241", "identity_reasoning")]


def test_passes_of_the_file_are_taken_as_they_stand(tmp_path: Path) -> None:
    moved = row(index=241 + PASS, A="a dog", B="a bird", C="a cat", answer="A", image="241")
    file = write(tmp_path / "dev.tsv", [row(), moved])
    given = samples(MmBench(file))
    assert [(each.id, each.references) for each in given] == [("241", ("B",)), (f"{241 + PASS}", ("A",))]
    assert given[0].images[0].name == given[1].images[0].name, "one cluster"
    assert [each.id for each in samples(MmBench(file, passes="first"))] == ["241"]


def test_pictures_are_read_from_their_rows(tmp_path: Path) -> None:
    rows = [
        row(index=1, image=picture(3), hint='say "a\tb"\n\nor \u00fc\u2028\x0c\x85'),
        row(index=2, image=picture(200)),
    ]
    given = samples(MmBench(write(tmp_path / "dev.tsv", rows), passes="first"))
    reds = [Image.open(io.BytesIO(each.images[0].read(10_000))).getpixel((0, 0)) for each in given]
    assert reds == [(3, 9, 9), (200, 9, 9)]
    assert given[0].images[0].name != given[1].images[0].name
    with pytest.raises(ValueError, match=r"dev.tsv#\w+: found \d+ bytes, expected at most 10"):
        given[0].images[0].read(10)


def test_a_test_file_has_no_answers(tmp_path: Path) -> None:
    columns = [each for each in COLUMNS if each != "answer"]
    given = samples(MmBench(write(tmp_path / "test.tsv", [row()], columns)))
    assert len(given) == 3
    assert [(each.references, [turn.role for turn in each.turns]) for each in given] == [((), ["user"])] * 3


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"answer": "D"}, "'answer' is 'D', expected A or B or C"),
        ({"answer": ""}, "'answer' is '', expected A or B or C"),
        ({"B": ""}, "found 1 choices, expected at least 2"),
        ({"question": ""}, "'question' is empty"),
        ({"index": "x"}, "'index' is 'x', expected a number"),
        ({"image": "no base64!"}, "'image' is nothing that is base64, expected a picture"),
        ({"image": "99"}, "'image' is row 99, which has no picture, expected a picture"),
        ({"index": 241}, "the id 241 occurs twice"),
    ],
)
def test_mmbench_refuses(tmp_path: Path, changes: dict[str, Any], rule: str) -> None:
    source = MmBench(write(tmp_path / "dev.tsv", [row(), row(**{"index": 3, **changes})]))
    with pytest.raises(ValueError, match=rf"dev.tsv:3 \(index \w+\): {rule}"):
        source.load()


def test_files_that_are_no_such_table(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"dev.tsv: found no column 'image', expected index, question"):
        MmBench(write(tmp_path / "dev.tsv", [row()], COLUMNS[:9])).load()
    (tmp_path / "dev.tsv").write_bytes(b"index\tquestion\n1\t\xff\n")
    with pytest.raises(ValueError, match=r"dev.tsv: found a byte that is not UTF-8"):
        MmBench(str(tmp_path / "dev.tsv")).load()
    (tmp_path / "dev.tsv").write_text('index\tquestion\n1\t"open\n')
    with pytest.raises(ValueError, match=r"dev.tsv: found a table that cannot be read"):
        MmBench(str(tmp_path / "dev.tsv")).load()
    (tmp_path / "dev.tsv").write_text("")
    with pytest.raises(ValueError, match=r"dev.tsv: found an empty file, expected a header and rows"):
        MmBench(str(tmp_path / "dev.tsv")).load()
    with pytest.raises(ValueError, match=r"none.tsv not found"):
        MmBench(str(tmp_path / "none.tsv")).load()
    with pytest.raises(ValueError, match="passes: found 'all', expected 'circular' or 'first'"):
        MmBench("x", passes="all")  # pyright: ignore[reportArgumentType]
