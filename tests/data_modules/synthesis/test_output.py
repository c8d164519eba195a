"""Records, quarantine and data card of a small synthesis."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from data_modules.sources import LlavaConversations
from data_modules.synthesis.output import provenance
from tests.data_modules.synthesis.outcomes import asked, files


def test_records_train_and_say_where_they_come_from(tmp_path: Path) -> None:
    found = files(tmp_path)
    records = json.loads((tmp_path / "out/instructions.json").read_text())
    assert [each["id"] for each in records] == ["1/conversation", "2/conversation", "1/detail"]
    assert records[0]["conversations"][:2] == [
        {"from": "human", "value": "<image>\nHow many dogs are there?"},
        {"from": "gpt", "value": "Two dogs run on the beach."},
    ]
    assert records[2]["conversations"][0]["value"] == f"<image>\n{asked('detail').question}"
    told = records[1]["provenance"]
    assert (told["kind"], told["model"], told["repairs"]) == ("conversation", "writer-1", 1)
    assert told["request"] == asked("conversation", 2, tmp_path / "images").fingerprint
    assert told["generator"].startswith("lightning-mllm")
    assert provenance(found[0])["repairs"] == 0
    (tmp_path / "images/coco").mkdir()
    for number in (1, 2):
        (tmp_path / f"images/{number}.jpg").rename(tmp_path / f"images/coco/{number}.jpg")
    source = LlavaConversations(str(tmp_path / "out/instructions.json"), str(tmp_path / "images"))
    source.load()
    assert len(source) == 3


def test_what_is_not_used_stands_in_quarantine(tmp_path: Path) -> None:
    files(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "out/quarantine.jsonl").read_text().splitlines()]
    assert [(line["id"], line["kind"], line["reason"]) for line in lines] == [
        ("2/detail", "detail", "wrong count"),
        ("3/detail", "detail", "refused"),
        ("1/dense", "dense", "duplicate"),
    ]
    assert lines[0]["sentence"] == "found 3 for 'dog', expected 2 as in the picture"
    assert lines[0]["text"].endswith("There are three dogs.")
    assert (lines[1]["sentence"], lines[1]["text"]) == ("a content filter", "")


def test_the_card_can_be_read(tmp_path: Path) -> None:
    files(tmp_path)
    _, front, text = (tmp_path / "out/README.md").read_text().split("---\n", 2)
    head = yaml.safe_load(front)
    assert head["pretty_name"] == "Dogs & <beaches>"
    assert head["configs"][0]["data_files"] == "instructions.json"
    assert "3 conversations about 2 pictures, written by writer-1." in text
    assert "| detail | captions and boxes | 1 | 0 | 1 | 1 | 0 |" in text
    assert "| dense | the picture | 0 | 0 | 1 | 0 | 1 |\n\n*Repaired*" in text
    assert "* Captions: `captions.json`.\n* Pictures: 3.\n" in text
