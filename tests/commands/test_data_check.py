"""`mllm data check`: every record, some pictures, one line each, and exit code 2 where a run would stop."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from lightning_mllm.cli import main
from lightning_mllm.commands.checked_sets import Finding, in_processes, lenient, located
from tests.data_modules.files import write
from tests.data_modules.sources.test_conversations import turns

ROOT = Path(__file__).resolve().parents[2]
SOURCE = "data_modules.sources.LlavaConversations"


def experiment(folder: Path, sources: dict[str, Any], **net: Any) -> Path:
    made = folder / "experiments/mine"
    made.mkdir(parents=True)
    shipped = ROOT / "experiments/quickstart/llava"
    init = {"max_length": 256, **net}
    (made / "net.yaml").write_text(yaml.safe_dump({"extends": str(shipped / "net.yaml"), "model": {"init_args": init}}))
    stage: dict[str, Any] = {
        "extends": str(shipped / "instruct.yaml"),
        "stage": {"init_from": {}, "global_batch": 4, "epochs": None, "steps": 1},
        "data": {"init_args": {"train": sources, "test": None}},
    }
    (made / "instruct.yaml").write_text(yaml.safe_dump(stage))
    return made


def source(file: str, images: Path, **settings: Any) -> dict[str, Any]:
    return {"class_path": SOURCE, "init_args": {"annotations": file, "images": str(images), **settings}}


def records(folder: Path, count: int = 12) -> tuple[list[Any], Path]:
    images = folder / "images"
    images.mkdir()
    for k in range(count):
        Image.new("RGB", (9, 8), (k, 0, 0)).save(images / f"{k}.png")
    said = [{"id": f"r{k}", "image": f"{k}.png", "conversations": turns("<image>\nwhat?", "red")} for k in range(count)]
    return said, images


def check(*arguments: object) -> int:
    try:
        main(["data", "check", *map(str, arguments)])
    except SystemExit as left:
        assert isinstance(left.code, int)
        return left.code
    return 0


def test_what_is_wrong_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A record, a text, a picture, a file: each in a line; those of a source that skips stop nothing while few."""
    said, images = records(tmp_path)
    good = [{**each, "id": f"g{each['id']}"} for each in deepcopy(said)]
    said[1]["conversations"][0]["from"] = "robot"
    said[2]["image"] = "gone.png"
    said[3]["conversations"][0]["value"] = "<image>\n" + "what " * 300
    said[4]["conversations"][1]["value"] = "red " * 400
    (images / "5.png").write_bytes((images / "5.png").read_bytes()[:50])
    bad = write(tmp_path / "bad.json", said)
    few = write(tmp_path / "few.json", [*good[:5], {"id": "x"}, *good[6:]])
    made = experiment(
        tmp_path,
        {
            "bad": source(bad, images),
            "few": source(few, images, bad_records="skip"),
            "none": source("nothing.json", images),
        },
    )
    report = tmp_path / "report.jsonl"
    assert check(made, "--images", "all", "--to", report) == 2
    found = [json.loads(line) for line in report.read_text().splitlines()]
    rules = {(line["where"].rpartition("/")[2], line["id"]): line["rule"] for line in found}
    assert set(rules) == {
        *(("bad.json: record 1", "r1"), ("bad.json: record 2", "r2"), ("bad.json: record 3", "r3")),
        *(("bad.json: record 5", "r5"), ("few.json: record 5", "x"), ("", "")),
    }
    assert rules["bad.json: record 1", "r1"] == "turn 0 is from 'robot', expected human, gpt or system"
    assert rules["bad.json: record 3", "r3"].endswith("expected at most 256: cutting the end would leave no answer")
    assert rules["bad.json: record 5", "r5"].endswith("5.png: image file is truncated")
    assert rules["", ""] == "nothing.json not found"
    printed = capsys.readouterr().out
    rows = {row[1]: row[3::2] for row in map(str.split, printed.splitlines()) if len(row) > 5 and "data." in row[1]}
    assert rows["data.train.bad"] == ["12", "3", "2", "0", "10", "9", "1"]
    assert rows["data.train.few"] == ["12", "1", "0", "0", "11", "11", "0"]
    assert f"  data.train.bad: {bad}: record 5: id r5: " in printed and "2 of 3 sets would stop a run" in printed


def test_good_data_and_a_tokenizer_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said, images = records(tmp_path)
    file = write(tmp_path / "a.json", said)
    made = experiment(tmp_path, {"photos": source(file, images)}, language={"model": "nobody/has-this"})
    assert check(made / "instruct.yaml", "--images", "3") == 0
    printed = capsys.readouterr().out
    assert "not tokens, for the processor cannot be made" in printed and "1 sets: nothing would stop a run" in printed
    (row,) = [row[3::2] for row in map(str.split, printed.splitlines()) if "data.train.photos" in row]
    assert row == ["12", "0", "-", "-", "12", "3", "0"]


def test_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong, told in (
        (["nowhere"], "found no such folder"),
        (["quickstart/llava", "--images", "some"], "--images: found 'some', expected a number or all"),
        (["quickstart/llava", "--stage", "alig"], "--stage: found 'alig'"),
        (["quickstart/llava", "--first", "-1"], "--first: found -1"),
    ):
        assert check(*wrong) == 2 and told in capsys.readouterr().err


def test_sentences_of_sources() -> None:
    """File and record, id, rule; what is a record's own is no part of the kind."""
    for sentence, where, id, rule in (
        (
            "a/b.json: record 12 (id 7): has no 'x', expected a list",
            "a/b.json: record 12",
            "7",
            "has no 'x', expected a list",
        ),
        ("b.jsonl:12 (image x.jpg): too long", "b.jsonl:12", "x.jpg", "too long"),
        ("b.jsonl:12: line 1, column 3: expected JSON", "b.jsonl:12", "", "line 1, column 3: expected JSON"),
        ("c.json: images[3]: gone", "c.json: images[3]", "", "gone"),
        ("nothing is known", "", "", "nothing is known"),
    ):
        assert located(sentence) == Finding(where=where, id=id, rule=rule)
    one = Finding(where="", id="", rule="image /a/b 1.png not found, found 3 of 'x'")
    other = Finding(where="", id="", rule="image /a/c 22.png not found, found 44 of 'yz'")
    assert one.kind == other.kind == "image ... ... not found, found N of '...'"


def test_sources_are_made_lenient() -> None:
    """What sources keep in files is known by their settings: a check must not leave there what `refuse` would find."""
    given = {"train": {"a": {"class_path": SOURCE, "init_args": {"annotations": "a", "bad_records": "refuse"}}}}
    changed = lenient({"class_path": "data_modules.module.InstructionDataModule", "init_args": given})
    assert changed["init_args"]["train"]["a"]["init_args"] == {"annotations": "a", "bad_records": "skip"}
    assert "bad_records" not in changed["init_args"] and given["train"]["a"]["init_args"]["bad_records"] == "refuse"


def test_many_texts_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    jobs = [range(k, k + 2) for k in range(0, 40, 2)]
    work: Any = list
    assert list(in_processes(work, jobs, lambda: iter(range(len(jobs))))) == [list(job) for job in jobs]
