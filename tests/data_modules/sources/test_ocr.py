from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_modules.sources import OcrVqa
from data_modules.sources.ocr import read_ocr
from tests.data_modules.files import generator, touch, write


def cover(split: int = 1, **changes: Any) -> dict[str, Any]:
    return {
        "imageURL": "http://images.example/I/51.jpg",
        "questions": ["Who wrote this book?", "Is it a novel?"],
        "answers": ["A. Writer", "Yes"],
        "title": "A Book",
        "authorName": "A. Writer",
        "genre": "Fiction",
        "split": split,
        **changes,
    }


def source(folder: Path, content: Any, split: str = "train", **settings: Any) -> OcrVqa:
    images = touch(folder / "images", "0001.jpg", "0002.gif", "0003.jpg")
    made = OcrVqa(write(folder / "dataset.json", content), images, split, **settings)
    made.load()
    return made


def test_every_question_of_a_cover_is_a_sample(tmp_path: Path) -> None:
    made = source(tmp_path, {"0001": cover()}, prompt="vqa/bare")
    first, second = (made.sample(index, generator()) for index in range(2))
    assert (first.id, second.id) == ("0001_0", "0001_1")
    assert [turn.text for turn in second.turns] == ["<image>\nIs it a novel?", "Yes"]
    assert second.references == ("Yes",) and second.task == "exact"
    assert first.images == second.images and first.images[0].name.endswith("0001.jpg")


def test_a_cover_has_the_suffix_of_its_address(tmp_path: Path) -> None:
    made = source(tmp_path, {"0002": cover(imageURL="http://images.example/I/52.gif")})
    assert made.sample(0, generator()).images[0].name.endswith("0002.gif")


def test_splits(tmp_path: Path) -> None:
    content = {"0001": cover(1), "0003": cover(2, questions=["Who?"], answers=["She"])}
    assert [len(source(tmp_path, content, split)) for split in ("train", "val", "train+val")] == [2, 1, 3]
    with pytest.raises(ValueError, match="found no usable record"):
        source(tmp_path, content, "test")
    with pytest.raises(ValueError, match="split: found 'dev', expected train or val or test"):
        OcrVqa("dataset.json", "images", "train+dev")


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"split": 4}, "'split' is 4, expected 1, 2 or 3"),
        ({"split": "1"}, "'split' is a text, expected a number"),
        ({"answers": ["A. Writer"]}, "found 2 questions and 1 answers, expected as many of each"),
        ({"questions": [], "answers": []}, "found 0 questions"),
        ({"answers": ["", "Yes"]}, "'answer' is empty"),
        ({"questions": ["Who?", None]}, "'question' is null, expected a text"),
        ({"imageURL": "http://images.example/I/51.png"}, "0003.png not found"),
        ({"imageURL": None}, "'imageURL' is null"),
    ],
)
def test_malformed_records(tmp_path: Path, changes: dict[str, Any], rule: str) -> None:
    content = {"0001": cover(), "0003": cover(**changes)}
    with pytest.raises(ValueError, match=rf"dataset.json: record '0003' \(id 0003\): .*{rule}"):
        source(tmp_path, content)
    assert len(source(tmp_path, content, bad_records="skip")) == 2


def test_a_file_that_is_no_object(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"dataset.json: found a list, expected an object of records by id"):
        source(tmp_path, [])
    with pytest.raises(ValueError, match="record '0001': found a text, expected an object with 'split'"):
        source(tmp_path, {"0001": "book"})


def test_ocr_tokens(tmp_path: Path) -> None:
    file = write(tmp_path / "ocr.json", {"data": [{"image_id": "x", "ocr_tokens": ["stop", "5"], "ocr_info": []}]})
    assert read_ocr(file) == {"x": ["stop", "5"]} and read_ocr("") == {}
    for record, rule in (
        ({"image_id": "x"}, r"\(image_id x\): has no 'ocr_tokens', expected a list"),
        ({"image_id": "x", "ocr_tokens": [5]}, "'ocr_tokens' holds 5, expected texts"),
        ({"image_id": 7, "ocr_tokens": []}, "'image_id' is a number"),
    ):
        with pytest.raises(ValueError, match=rf"ocr.json: data\[0\].*{rule}"):
            read_ocr(write(tmp_path / "ocr.json", {"data": [record]}))
