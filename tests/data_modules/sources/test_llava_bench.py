from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_modules.sources import LlavaBench
from tests.data_modules.files import touch, write
from tests.data_modules.sources.held_out import samples, turns


def bench(folder: Path, answers: list[Any], **changes: Any) -> LlavaBench:
    questions = [{"question_id": 0, "image": "001.jpg", "text": "What is it?", "category": "conv", **changes}]
    images = touch(folder / "images", "001.jpg", "COCO_val2014_001.jpg")
    pattern = "COCO_val2014_{image}" if changes.get("category") == "complex" else "{image}"
    files = write(folder / "questions.jsonl", questions), images, write(folder / "answers.jsonl", answers)
    return LlavaBench(*files, image_pattern=pattern)


def test_gpt4s_answers_are_the_references(tmp_path: Path) -> None:
    given = [{"question_id": 0, "text": "A red ball.", "category": "conv"}]
    (sample,) = samples(bench(tmp_path, given))
    assert turns(sample) == ["<image>\nWhat is it?", "A red ball."]
    assert (sample.id, sample.task, sample.question_type) == ("0", "judged", "conv")
    (other,) = samples(bench(tmp_path, given, category="complex"))
    assert other.images[0].name.endswith("images/COCO_val2014_001.jpg")


@pytest.mark.parametrize(
    ("answers", "changes", "rule"),
    [
        ([], {}, r"questions.jsonl:1 \(question_id 0\): has no answer in .*answers.jsonl, expected one"),
        ([{"question_id": 0}], {}, r"answers.jsonl:1 \(question_id 0\): has no 'text', expected a text"),
        ([{"question_id": 0, "text": "A."}], {"category": "qa"}, r"'category' is 'qa', expected conv or detail or"),
    ],
)
def test_llava_bench_refuses(tmp_path: Path, answers: list[Any], changes: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        bench(tmp_path, answers, **changes).load()
    with pytest.raises(ValueError, match=r"image_pattern: found 'x.jpg', expected a name with"):
        LlavaBench("a", "b", "c", image_pattern="x.jpg")
