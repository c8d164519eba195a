from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_modules.sources import AOkVqa
from tests.data_modules.files import generator, touch, write


def record(id: str = "22jb", **changes: Any) -> dict[str, Any]:
    return {
        "split": "train",
        "image_id": 9,
        "question_id": id,
        "question": "What is the man by the bags awaiting?",
        "choices": ["skateboarder", "train", "delivery", "cab"],
        "correct_choice_idx": 3,
        "direct_answers": ["ride", "ride", "bus", "taxi", "cab", "bus", "bus", "ride", "ride", "ride"],
        "difficult_direct_answer": False,
        "rationales": ["He stands at the curb.", "He has luggage.", "He looks down the street."],
        **changes,
    }


def source(folder: Path, records: list[Any], **settings: Any) -> AOkVqa:
    images = touch(folder / "images", "000000000009.jpg")
    made = AOkVqa(write(folder / "aokvqa_v1p0_train.json", records), images, **settings)
    made.load()
    return made


def test_direct_answers(tmp_path: Path) -> None:
    sample = source(tmp_path, [record()], prompt="vqa/bare").sample(0, generator())
    assert [turn.text for turn in sample.turns] == ["<image>\nWhat is the man by the bags awaiting?", "ride"]
    assert len(sample.references) == 10 and sample.task == "vqa" and not sample.candidates
    assert sample.images[0].name.endswith("000000000009.jpg")


def test_questions_that_are_no_fit_for_direct_answers(tmp_path: Path) -> None:
    records = [record("a"), record("b", difficult_direct_answer=True)]
    assert len(source(tmp_path, records)) == 1
    assert len(source(tmp_path, records, difficult=True)) == len(source(tmp_path, records, form="choice")) == 2


def test_choices_are_named_and_ranked(tmp_path: Path) -> None:
    made = source(tmp_path, [record()], form="choice", prompt="multiple_choice/answer")
    sample = made.sample(0, generator())
    assert sample.turns[0].text == (
        "<image>\nQuestion: What is the man by the bags awaiting?"
        " Options: (a) skateboarder (b) train (c) delivery (d) cab. Answer:"
    )
    assert sample.turns[1].text == "cab" and sample.references == ("cab",) and sample.task == "choice"
    assert sample.candidates == ("skateboarder", "train", "delivery", "cab")
    family = source(tmp_path, [record()], form="choice")
    assert all("Options: (a)" in family.sample(0, generator(k)).turns[0].text for k in range(20))


@pytest.mark.parametrize(
    ("form", "changes", "rule"),
    [
        ("choice", {"correct_choice_idx": 4}, "'correct_choice_idx' is 4, expected 0 to 3"),
        ("choice", {"correct_choice_idx": None}, "'correct_choice_idx' is null, expected a number"),
        ("choice", {"choices": ["a", 1]}, "'choices' is a number, expected a text"),
        ("choice", {"choices": []}, "'choices' is empty"),
        ("direct", {"direct_answers": []}, "'direct_answers' is empty, expected at least one"),
        ("direct", {"direct_answers": "ride"}, "'direct_answers' is a text, expected a list"),
        ("direct", {"difficult_direct_answer": "no"}, "expected true or false"),
        ("direct", {"image_id": 8}, "000000000008.jpg not found"),
        ("direct", {"image_id": "9"}, "'image_id' is a text, expected a number"),
        ("direct", {"question": ""}, "'question' is empty"),
    ],
)
def test_malformed_records(tmp_path: Path, form: Any, changes: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValueError, match=rf"train.json: record 1 \(question_id b\): .*{rule}"):
        source(tmp_path, [record("a"), record("b", **changes)], form=form)


def test_the_form_is_checked_at_once() -> None:
    with pytest.raises(ValueError, match="form: found 'both', expected 'direct' or 'choice'"):
        AOkVqa("a.json", "images", form="both")  # type: ignore[arg-type]
