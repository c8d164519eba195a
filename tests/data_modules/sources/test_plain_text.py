"""Laws of plain text: every document is found again, and parts of one share no character and lose none."""

from __future__ import annotations

import json
import tracemalloc
from itertools import pairwise
from pathlib import Path

import pytest

from data_modules.sources import TextFiles, TextLines, TextTable
from data_modules.sources.plain_text import TextSource, border
from tests.data_modules.files import generator, write

TEXTS = ["A first document.\nOf two lines.", "größer, 長い文章", "  indented\n\tand more", "x", "🙂 ends with a word"]


def loaded(source: TextSource) -> list[str]:
    source.load()
    source.load()
    assert [len(source.read(k)) for k in range(len(source))] == source.sizes.tolist()
    names = {source.name(k) for k in range(len(source))}
    assert len(names) == len(source)
    return [source.read(k).decode() for k in range(len(source))]


def test_text_files_with_one_document_each(tmp_path: Path) -> None:
    for number, text in enumerate(TEXTS):
        (tmp_path / f"{number}.txt").write_text(text)
    assert loaded(TextFiles(str(tmp_path / "*.txt"))) == TEXTS
    assert loaded(TextFiles([str(tmp_path / "3.txt"), str(tmp_path / "0.txt")])) == [TEXTS[3], TEXTS[0]]


@pytest.mark.parametrize("between", ["\n\n", "\n \t\n", "\r\n\r\n", "\n\n\n\n"])
@pytest.mark.parametrize("around", ["", "\n", "\n\n"])
def test_documents_between_blank_lines(between: str, around: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes((around + between.join(TEXTS) + around).encode())
    assert loaded(TextFiles([str(tmp_path / "a"), str(tmp_path / "b")], documents="blank_line")) == TEXTS * 2


def test_lines_of_json(tmp_path: Path) -> None:
    """Texts are those of other readers: without the blanks around them; blank lines are no documents."""
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    write(first, [{"content": text, "url": "u"} for text in TEXTS])
    second.write_text("\n" + json.dumps({"content": "last"}, ensure_ascii=False))
    source = TextLines([str(first), str(second)], field="content")
    assert loaded(source) == [text.strip() for text in TEXTS] + ["last"]
    assert source.name(5) == f"{second}#0"


def test_a_column_of_a_table(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    for number, texts in enumerate((TEXTS[:2], TEXTS[2:])):
        table = pyarrow.table({"content": texts, "url": ["u"] * len(texts)})
        pyarrow.parquet.write_table(table, tmp_path / f"{number}.parquet")
    source = TextTable(str(tmp_path / "*.parquet"))
    assert loaded(source) == TEXTS

    gaps = pyarrow.table({"content": ["one", None, "", "four"]})
    pyarrow.parquet.write_table(gaps, tmp_path / "2.parquet")
    with pytest.raises(ValueError, match=r"2.parquet: row 1: 'content' is empty, expected a text"):
        TextTable(str(tmp_path / "*.parquet")).load()
    skipping = TextTable(str(tmp_path / "*.parquet"), bad_records="skip")
    assert loaded(skipping) == [*TEXTS, "one", "four"] and len(skipping.skipped) == 2

    (tmp_path / "no.parquet").write_text("not a table")
    numbers = pyarrow.table({"content": [1, 2]})
    pyarrow.parquet.write_table(numbers, tmp_path / "numbers.parquet")
    for name, field, sentence in (
        ("no.parquet", "content", "no.parquet: found no table .* expected a whole .parquet file"),
        ("0.parquet", "text", "0.parquet: found the columns content, url, expected texts in 'text'"),
        ("numbers.parquet", "content", "numbers.parquet: found 'content' of type int64, expected texts in 'content'"),
    ):
        with pytest.raises(ValueError, match=sentence):
            TextTable(str(tmp_path / name), field=field).load()


BAD_LINES = {
    "not JSON": (b"{", "expected JSON"),
    "no text": (b'{"id": 3}', r"\(id 3\): has no 'text', expected a text"),
    "a number": (b'{"text": 3}', "'text' is a number, expected a text"),
    "empty": (b'{"text": "  "}', "'text' is empty, expected a text"),
    "a list": (b"[]", "found a list, expected an object with 'text'"),
    "not UTF-8": (b'{"text": "\xff"}', "found a byte that is not UTF-8 at offset 10"),
    "half a character": (rb'{"text": "\ud800"}', "'text' has half of a surrogate pair"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_line_that_breaks_a_rule(case: str, tmp_path: Path) -> None:
    line, sentence = BAD_LINES[case]
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(b'{"text": "one"}\n\n' + line + b'\n{"text": "two"}\n')
    with pytest.raises(ValueError, match=r"corpus\.jsonl:3.*" + sentence):
        TextLines(str(path)).load()
    skipping = TextLines(str(path), bad_records="skip")
    assert loaded(skipping) == ["one", "two"] and len(skipping.skipped) == 1


def test_files_that_break_a_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from data_modules.sources import text_files

    monkeypatch.setattr(text_files, "BLOCK", 4)
    (tmp_path / "a.txt").write_bytes("größer".encode()[:3])
    (tmp_path / "b.txt").write_bytes(b"one line\n\nand \xff another")
    (tmp_path / "c.txt").write_bytes(b" \n ")
    (tmp_path / "d.txt").write_bytes("größer".encode())
    for name, documents, sentence in (
        ("a.txt", "file", r"a\.txt: found a byte that is not UTF-8 at offset 2"),
        ("b.txt", "file", r"b\.txt: found a byte that is not UTF-8 at offset 14"),
        ("b.txt", "blank_line", r"b\.txt:3: found a byte that is not UTF-8 at offset 4"),
        ("c.txt", "file", r"c\.txt: found no text, expected some"),
        ("c.txt", "blank_line", r"c\.txt: found no document, expected at least one"),
        ("e.txt", "file", r"e\.txt not found"),
        ("*.text", "file", r"\*\.text not found"),
    ):
        with pytest.raises(ValueError, match=sentence):
            TextFiles(str(tmp_path / name), documents=documents).load()  # pyright: ignore
    source = TextFiles(str(tmp_path / "*.txt"), bad_records="skip")
    assert loaded(source) == ["größer"] and len(source.skipped) == 3
    monkeypatch.setattr(text_files, "LONGEST_LINE", 8)
    with pytest.raises(ValueError, match=r"b\.txt:1: found a line of 8 bytes or more"):
        TextFiles(str(tmp_path / "b.txt"), documents="blank_line").load()
    for wrong, sentence in (({"documents": "page"}, "documents: found 'page'"), ({"bad_records": "x"}, "bad_records")):
        with pytest.raises(ValueError, match=sentence):
            TextFiles("a.txt", **wrong)  # pyright: ignore


@pytest.mark.parametrize("text", [*TEXTS, "x" * 200, "長" * 99, "a b " * 50, ""])
def test_parts_share_no_character_and_lose_none(text: str) -> None:
    data = text.encode()
    borders = [border(data, cut) for cut in range(len(data) + 2)]
    assert borders == sorted(borders) and borders[0] == 0 and borders[-1] == len(data)
    for begin, end in pairwise(borders):
        data[begin:end].decode()
    begins = [k for k in range(1, len(data)) if data[k - 1 : k].isspace() and not data[k : k + 1].isspace()]
    for cut in range(1, len(data)):
        word = next((k for k in begins if cut <= k < cut + 64), None)
        near_end = len(data) if cut + 64 >= len(data) else None
        assert borders[cut] == (word or near_end) if word or near_end else borders[cut] - cut < 4, cut


def test_documents_are_not_held(tmp_path: Path) -> None:
    path = tmp_path / "large.jsonl"
    with open(path, "w") as file:
        file.writelines(json.dumps({"text": f"{k} " + "word " * 2000}) + "\n" for k in range(1000))
    source = TextLines(str(path))
    tracemalloc.start()
    source.load()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 9_000_000 and most < 500_000
    assert source.read(999).startswith(b"999 word")


def test_a_document_as_a_sample(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    source = TextLines(write(path, [{"text": text} for text in TEXTS]))
    source.load()
    sample = source.sample(1, generator())
    assert sample.documents is not None and sample.documents.texts == (TEXTS[1],)
    assert (sample.id, sample.documents.length, sample.images, sample.turns) == (f"{path}#1", None, (), ())
    assert not source.has_image(1) and source.length(0) == 6
