from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_modules.sources import Gqa, TextVqa, VizWiz
from tests.data_modules.files import SHARED, generator, touch, write
from tests.data_modules.sources.held_out import samples, score, turns

TEN = ["nous les gosses", *["dakota"] * 5, *["dakota digital"] * 3, ""]


def asked(**changes: Any) -> dict[str, Any]:
    return {
        "question": "what is the brand of this camera?",
        "image_id": "003a8ae2ef43b901",
        "image_classes": ["Cassette deck", "Printer"],
        "flickr_original_url": "https://farm2.staticflickr.com/4/5566811_bc00d504a6_o.jpg",
        "image_width": 1024,
        "image_height": 664,
        "answers": TEN,
        "question_tokens": ["what", "is", "the", "brand", "of", "this", "camera"],
        "question_id": 34602,
        "set_name": "val",
        **changes,
    }


def textvqa(folder: Path, records: list[Any], ocr: dict[str, list[str]] | None = None, **settings: Any) -> TextVqa:
    head = {"dataset_type": "val", "dataset_name": "textvqa", "dataset_version": "0.5.1"}
    if ocr is not None:
        read = [{"image_id": id, "ocr_tokens": tokens, "ocr_info": []} for id, tokens in ocr.items()]
        settings["ocr"] = write(folder / "TextVQA_Rosetta_OCR_v0.2_val.json", {**head, "data": read})
    file = write(folder / "TextVQA_0.5.1_val.json", {**head, "data": records})
    return TextVqa(file, touch(folder / "train_images", "003a8ae2ef43b901.jpg"), **settings)


def test_textvqa_tells_at_most_thirty_ocr_tokens(tmp_path: Path) -> None:
    tokens = [f"t{k}" for k in range(40)]
    (sample,) = samples(textvqa(tmp_path, [asked()], {"003a8ae2ef43b901": tokens}))
    told = ", ".join(tokens[:30])
    request = f"<image>\nOCR tokens: {told}. Question: what is the brand of this camera? Short answer:"
    assert turns(sample) == [request, "dakota"]
    assert (sample.id, sample.task, sample.references, sample.candidates) == ("34602", "vqa", tuple(TEN), ())
    assert sample.images[0].name.endswith("train_images/003a8ae2ef43b901.jpg")
    assert (score([sample]), score([sample], right=False)) == (1, 0)


@pytest.mark.parametrize("ocr", [None, {"003a8ae2ef43b901": []}])
def test_textvqa_where_nothing_was_read(tmp_path: Path, ocr: dict[str, list[str]] | None) -> None:
    (sample,) = samples(textvqa(tmp_path, [asked()], ocr))
    assert turns(sample)[0] == "<image>\nQuestion: what is the brand of this camera? Short answer:"


def test_textvqa_may_learn_what_few_people_said(tmp_path: Path) -> None:
    source = textvqa(tmp_path, [asked()], answers="drawn")
    source.load()
    drawn = {turns(source.sample(0, generator(seed)))[1] for seed in range(200)}
    assert drawn == {"nous les gosses", "dakota", "dakota digital"}


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"answers": TEN[:9]}, "found 9 answers, expected those of 10 people"),
        ({"answers": [*TEN[:9], 7]}, "'answers' is a number, expected a text"),
        ({"answers": [""] * 10}, "the answer is empty"),
        ({"answers": None}, "'answers' is null, expected a list"),
        ({"question": "<image>?"}, "has an <image> mark"),
        ({"image_id": "0" * 16}, "image 0000000000000000 is not in .*OCR_v0.2_val.json, expected its OCR tokens"),
        ({"image_id": "1" * 16}, "image .*1111111111111111.jpg not found"),
        ({"question_id": 34601}, "the id 34601 occurs twice"),
    ],
)
def test_textvqa_refuses(tmp_path: Path, changes: dict[str, Any], rule: str) -> None:
    records = [asked(question_id=34601), asked(**changes)]
    source = textvqa(tmp_path, records, {"003a8ae2ef43b901": ["DAKOTA"], "1" * 16: []})
    id = records[1]["question_id"]
    with pytest.raises(ValueError, match=rf"TextVQA_0.5.1_val.json: data\[1\] \(question_id {id}\): .*{rule}"):
        source.load()


@pytest.mark.skipif(not (SHARED / "format_samples").is_dir(), reason="excerpts of published files are not here")
def test_textvqa_as_published(tmp_path: Path) -> None:
    file = SHARED / "format_samples/TextVQA_0.5.1_val.json"
    records = json.loads(file.read_text())["data"]
    images = touch(tmp_path, *{f"{record['image_id']}.jpg" for record in records})
    given = samples(TextVqa(str(file), images))
    assert [sample.id for sample in given] == [str(record["question_id"]) for record in records]
    assert all(sample.references == tuple(record["answers"]) for sample, record in zip(given, records, strict=True))
    assert 0.5 < score(given) <= 1, "the most common answer is what most people would be scored right for"


def photographed(number: int = 0, **changes: Any) -> dict[str, Any]:
    answers = ["unanswerable", *["night time"] * 8, "night time cold medicine"]
    return {
        "image": f"VizWiz_val_0000000{number}.jpg",
        "question": "Can you tell me what this medicine is please?",
        "answers": [{"answer_confidence": "yes", "answer": text} for text in answers],
        "answer_type": "other",
        "answerable": 1,
        **changes,
    }


def vizwiz(folder: Path, records: list[Any], **settings: Any) -> VizWiz:
    images = touch(folder / "val", "VizWiz_val_00000000.jpg", "VizWiz_val_00000001.jpg")
    return VizWiz(write(folder / "val.json", records), images, **settings)


def test_vizwiz(tmp_path: Path) -> None:
    blurred = photographed(1, answers=[{"answer": "unanswerable"}] * 10, answer_type="unanswerable", answerable=0)
    first, second = samples(vizwiz(tmp_path, [photographed(), blurred]))
    assert turns(first) == [
        "<image>\nQuestion: Can you tell me what this medicine is please? Short answer:",
        "night time",
    ]
    assert (first.id, first.task, len(first.references)) == ("VizWiz_val_00000000.jpg", "vqa", 10)
    assert first.images[0].name.endswith("val/VizWiz_val_00000000.jpg")
    assert turns(second)[1] == "unanswerable" and score([first, second]) == 1
    assert samples(vizwiz(tmp_path, [photographed(), blurred], unanswerable=False)) == [first]


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"answers": [{"answer": "yes"}] * 11}, "found 11 answers, expected those of 10 people"),
        ({"answers": [{"answer_confidence": "yes"}] * 10}, "has no 'answer', expected a text"),
        ({"answers": ["yes"] * 10}, "found a text, expected an object with 'answer'"),
        ({"answerable": 2}, "'answerable' is 2, expected 0 or 1"),
        ({"answerable": True}, "'answerable' is true or false, expected a number"),
        ({"question": " "}, "'question' is empty"),
        ({"image": "VizWiz_val_00000000.jpg"}, "the id VizWiz_val_00000000.jpg occurs twice"),
        ({"image": "VizWiz_val_00000009.jpg"}, "image .*VizWiz_val_00000009.jpg not found"),
    ],
)
def test_vizwiz_refuses(tmp_path: Path, changes: dict[str, Any], rule: str) -> None:
    source = vizwiz(tmp_path, [photographed(), photographed(1, **changes)])
    with pytest.raises(ValueError, match=rf"val.json: record 1 \(image VizWiz_val_0000000\d.jpg\): .*{rule}"):
        source.load()


def reasoned(**changes: Any) -> dict[str, Any]:
    return {
        "semantic": [{"operation": "select", "dependencies": [], "argument": "sky (2486325)"}],
        "entailed": [],
        "equivalent": ["201307251"],
        "question": "Is it overcast?",
        "imageId": "n161313",
        "isBalanced": True,
        "groups": {"global": None, "local": "13-weather_overcast"},
        "answer": "no",
        "semanticStr": "select: sky (2486325)",
        "annotations": {"answer": {}, "question": {}, "fullAnswer": {}},
        "types": {"detailed": "weatherVerify", "semantic": "global", "structural": "verify"},
        "fullAnswer": "No, it is clear.",
        **changes,
    }


def gqa(folder: Path, records: Any, **settings: Any) -> Gqa:
    return Gqa(write(folder / "val_all_questions.json", records), touch(folder / "images", "n161313.jpg"), **settings)


def test_gqa_asks_the_balanced_questions(tmp_path: Path) -> None:
    records = {"201307251": reasoned(), "07333408": reasoned(isBalanced=False, question="Is it clear?", answer="yes")}
    (sample,) = samples(gqa(tmp_path, records))
    assert turns(sample) == ["<image>\nQuestion: Is it overcast? Short answer:", "no"]
    assert (sample.id, sample.task, sample.references) == ("201307251", "exact", ("no",))
    assert sample.images[0].name.endswith("images/n161313.jpg")
    assert (score([sample]), score([sample], right=False)) == (1, 0)
    assert [each.id for each in samples(gqa(tmp_path, records, balanced=False))] == ["201307251", "07333408"]


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"answer": ""}, "'answer' is empty"),
        ({"question": 3}, "'question' is a number, expected a text"),
        ({"imageId": 161313}, "'imageId' is a number, expected a text"),
        ({"imageId": "2354786"}, "image .*2354786.jpg not found"),
        ({"isBalanced": "yes"}, "'isBalanced' is a text, expected true or false"),
    ],
)
def test_gqa_refuses(tmp_path: Path, changes: dict[str, Any], rule: str) -> None:
    source = gqa(tmp_path, {"1": reasoned(), "02": reasoned(**changes)})
    with pytest.raises(ValueError, match=rf"val_all_questions.json: record '02' \(id 02\): {rule}"):
        source.load()


@pytest.mark.parametrize(
    ("records", "rule"),
    [({"1": ["Is it?"]}, "record '1': found a list, expected an object"), ([reasoned()], "found a list, expected an")],
)
def test_gqa_of_another_shape(tmp_path: Path, records: Any, rule: str) -> None:
    with pytest.raises(ValueError, match=rf"val_all_questions.json: {rule}"):
        gqa(tmp_path, records).load()
