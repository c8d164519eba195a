from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data_modules.sources import TextCaps, WebCapFilt
from data_modules.sources.templates import bank
from tests.data_modules.files import SHARED, generator, touch, write


def web(folder: Path, records: list[Any], name: str = "web.json", **settings: Any) -> WebCapFilt:
    made = WebCapFilt(write(folder / name, records), touch(folder / "images", "0/a.jpg", "b.jpg"), **settings)
    made.load()
    return made


@pytest.mark.parametrize("name", ["web.json", "web.jsonl"])
def test_one_of_the_two_best_captions_is_drawn(tmp_path: Path, name: str) -> None:
    records = [{"image": "0/a.jpg", "caption": ["best", "second", "third"]}, {"image": "b.jpg", "caption": "only"}]
    made = web(tmp_path, records, name, prompt="<image>")
    random = generator()
    counts = Counter(made.sample(0, random).turns[1].text for _ in range(1000))
    assert set(counts) == {"best", "second"} and abs(counts["best"] - 500) < 60
    assert made.captions and len(made) == 2
    assert made.sample(0, random).references == ("best", "second") and made.sample(1, random).references == ("only",)
    assert made.sample(0, random).images[0].name.endswith("0/a.jpg")


def test_captions_are_asked_for_by_a_family(tmp_path: Path) -> None:
    made = web(tmp_path, [{"image": "b.jpg", "caption": "only"}])
    prompts = {made.sample(0, generator(k)).turns[0].text for k in range(200)}
    assert prompts == {f"<image>\n{template.text}" for template in bank()["caption"]}


@pytest.mark.parametrize(
    ("record", "rule"),
    [
        ({"image": "c.jpg", "caption": "x"}, r"\(image c.jpg\): image .*c.jpg not found"),
        ({"image": "b.jpg", "caption": []}, "'caption' is empty, expected at least one"),
        ({"image": "b.jpg", "caption": ["x", 3]}, "'caption' is a number, expected a text"),
        ({"image": "b.jpg", "caption": None}, "'caption' is null, expected a text or a list"),
        ({"caption": "x"}, "has no 'image'"),
        ("b.jpg", "found a text, expected an object with 'image'"),
    ],
)
def test_malformed_web_records(tmp_path: Path, record: Any, rule: str) -> None:
    records = [{"image": "0/a.jpg", "caption": "x"}, record]
    with pytest.raises(ValueError, match=rf"web.json: record 1.*{rule}"):
        web(tmp_path, records)
    with pytest.raises(ValueError, match=rf"web.jsonl:2.*{rule}"):
        web(tmp_path, records, "web.jsonl")
    assert len(web(tmp_path, records, bad_records="skip")) == 1


def told(id: int, image: str = "x", text: str = "A stop sign.", **changes: Any) -> dict[str, Any]:
    return {
        "image_id": image,
        "image_path": f"train/{image}.jpg",
        "caption_id": id,
        "caption_str": text,
        "reference_strs": [text],
        "set_name": "val",
        **changes,
    }


def textcaps(folder: Path, records: list[Any], tokens: list[str] | None = None, **settings: Any) -> TextCaps:
    images = touch(folder / "images", "train/x.jpg", "train/y.jpg")
    content = {"dataset_type": "val", "dataset_name": "textcaps", "data": records}
    ocr = "" if tokens is None else write(folder / "ocr.json", {"data": [{"image_id": "x", "ocr_tokens": tokens}]})
    made = TextCaps(write(folder / "TextCaps_0.1_val.json", content), images, ocr, **settings)
    made.load()
    return made


def test_textcaps_tells_the_ocr_tokens(tmp_path: Path) -> None:
    records = [told(1), told(2, "y", "A bus."), told(3, text="It says stop.")]
    made = textcaps(tmp_path, records, ["stop", "5"], prompt="ocr_caption/short_caption")
    samples = [made.sample(index, generator()) for index in range(3)]
    assert [sample.id for sample in samples] == ["1", "3", "2"]
    assert samples[1].turns[0].text == "<image>\nOCR tokens: stop, 5. A short image caption:"
    assert samples[2].turns[0].text == "<image>\nA short image caption:"
    assert samples[0].references == samples[1].references == ("A stop sign.", "It says stop.")
    many = textcaps(tmp_path, records, [f"t{k}" for k in range(40)]).sample(0, generator()).turns[0].text
    assert "t29. " in many and "t30" not in many


def test_textcaps_by_image(tmp_path: Path) -> None:
    made = textcaps(tmp_path, [told(1), told(2, text="It says stop."), told(3, "y")], per="image")
    assert len(made) == 2
    assert {made.sample(0, generator(k)).turns[1].text for k in range(20)} == {"A stop sign.", "It says stop."}


@pytest.mark.parametrize(
    ("record", "rule"),
    [
        (told(1), "the id occurs twice"),
        (told(2, "z"), "image .*train/z.jpg not found"),
        (told(2, text=" "), "'caption_str' is empty"),
        (told(2, image_path="train/y.jpg"), "image x is 'train/y.jpg', expected 'train/x.jpg' as before"),
        ({"image_id": "x"}, "has no 'caption_id'"),
    ],
)
def test_malformed_textcaps(tmp_path: Path, record: Any, rule: str) -> None:
    with pytest.raises(ValueError, match=rf"TextCaps_0.1_val.json: data\[1\].*{rule}"):
        textcaps(tmp_path, [told(1), record])
    assert len(textcaps(tmp_path, [told(1), record], bad_records="skip")) == 1


@pytest.mark.skipif(not (SHARED / "format_samples").is_dir(), reason="excerpts of published files are not here")
def test_the_published_textcaps(tmp_path: Path) -> None:

    file = SHARED / "format_samples/TextCaps_0.1_val.json"
    records = json.loads(file.read_text())["data"]
    images = touch(tmp_path, *{record["image_path"] for record in records})
    made = TextCaps(str(file), images)
    made.load()
    assert len(made) == len(records) == 100
    by_id = {record["caption_id"]: record for record in records}
    for index in range(len(made)):
        sample = made.sample(index, generator())
        assert sample.turns[1].text == by_id[int(sample.id)]["caption_str"].strip()
