from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_modules.sources import VisualDialog
from tests.data_modules.files import touch, write
from tests.data_modules.sources.held_out import samples, score, turns

QUESTIONS = [f"is there a {thing}" for thing in ["cat", "dog", "man", "bus", "cup", "bed", "tie", "hat", "car", "box"]]
ANSWERS = [f"answer {k}" for k in range(120)]


def rounds(**changes: Any) -> list[dict[str, Any]]:
    """Ten rounds, answer 10 + k being the right one of round k and standing at the place k; the third with changes."""
    made: list[dict[str, Any]] = [
        {"question": 9 - k, "answer": 10 + k, "answer_options": [(10 + j) % 120 for j in range(100)], "gt_index": k}
        for k in range(10)
    ]
    made[2].update(changes)
    return made


def visdial(folder: Path, dialogs: list[Any], data: dict[str, Any] | None = None, **settings: Any) -> VisualDialog:
    content = {"questions": QUESTIONS, "answers": ANSWERS, "dialogs": dialogs, **(data or {})}
    file = write(folder / "visdial_1.0_val.json", {"version": "1.0", "split": "val2018", "data": content})
    images = touch(folder / "VisualDialog_val2018", "VisualDialog_val2018_000000185565.jpg", "COCO_000000185565.jpg")
    return VisualDialog(file, images, **settings)


def dialogue(**changes: Any) -> dict[str, Any]:
    return {"image_id": 185565, "caption": "a bear in a field", "dialog": rounds(), **changes}


def test_each_round_is_told_the_rounds_before_it(tmp_path: Path) -> None:
    given = samples(visdial(tmp_path, [dialogue()]))
    assert [sample.id for sample in given] == [f"185565_{k}" for k in range(1, 11)]
    assert turns(given[0]) == [
        "<image>\nCaption: a bear in a field Question: is there a box Short answer:",
        "answer 10",
    ]
    assert turns(given[2]) == [
        "<image>\nCaption: a bear in a field Dialog history: Question: is there a box Answer: answer 10"
        " Question: is there a car Answer: answer 11 Question: is there a hat Short answer:",
        "answer 12",
    ]
    assert turns(given[9])[0].count("Answer:") == 9
    assert given[0].images[0].name.endswith("VisualDialog_val2018_000000185565.jpg")


def test_the_hundred_options_are_ranked(tmp_path: Path) -> None:
    given = samples(visdial(tmp_path, [dialogue()]))
    assert all(sample.candidates == tuple(ANSWERS[10:110]) and sample.task == "mrr" for sample in given)
    assert [sample.references for sample in given] == [(f"answer {10 + k}",) for k in range(10)]
    assert score(given) == 1 and score(given, right=False) == pytest.approx(0.01)


def test_without_the_caption_and_of_other_images(tmp_path: Path) -> None:
    given = samples(visdial(tmp_path, [dialogue(caption=None)], caption=False, prefix="COCO_"))
    assert turns(given[0])[0] == "<image>\nQuestion: is there a box Short answer:"
    assert given[0].images[0].name.endswith("/COCO_000000185565.jpg")


OPTIONS = list(range(10, 110))


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"caption": ""}, "'caption' is empty"),
        ({"dialog": rounds()[:9]}, "found 9 rounds, expected 10"),
        ({"dialog": rounds(answer_options=OPTIONS[:99])}, "round 3: found 99 of 'answer_options', expected 100"),
        ({"dialog": rounds(answer_options=[])}, "round 3: found 0 of 'answer_options', expected 100"),
        ({"dialog": rounds(gt_index=100)}, "round 3: 'gt_index' is 100, expected 0 to 99"),
        ({"dialog": rounds(gt_index=3)}, "round 3: 'gt_index' 3 is the answer 13, expected 12"),
        ({"dialog": rounds(answer=None)}, "round 3: 'answer' is null, expected a number"),
        ({"dialog": rounds(question=10)}, "round 3: 'question' is 10, expected 0 to 9 as 'data.questions' has 10"),
        (
            {"dialog": rounds(answer_options=[*OPTIONS[:99], 120])},
            "round 3: 'answer_options' is 120, expected 0 to",
        ),
        ({"dialog": rounds(answer_options=[*OPTIONS[:99], -1])}, "round 3: 'answer_options' is -1, expected 0 to"),
        ({"dialog": [*rounds()[:9], "bye"]}, "round 10: found a text, expected an object"),
        ({"image_id": 2}, "image .*VisualDialog_val2018_000000000002.jpg not found"),
        ({}, "the id 185565_1 occurs twice"),
    ],
)
def test_malformed_dialogues(tmp_path: Path, changes: dict[str, Any], rule: str) -> None:
    source = visdial(tmp_path, [dialogue(), dialogue(**changes)])
    with pytest.raises(ValueError, match=rf"visdial_1.0_val.json: data.dialogs\[1\] \(image_id \d+\): {rule}"):
        source.load()


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        ({"questions": [*QUESTIONS[:7], "", *QUESTIONS[8:]]}, r"round 3: 'data.questions\[7\]' is empty"),
        ({"answers": [7] * 120}, r"round 1: 'data.answers\[10\]' is a number, expected a text"),
        ({"answers": None}, "expected the list 'answers'"),
        ({"dialogs": {}}, "expected the list 'dialogs'"),
    ],
)
def test_malformed_texts(tmp_path: Path, data: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        visdial(tmp_path, [dialogue()], data).load()


@pytest.mark.parametrize("content", [[], {"data": None}, {"dialogs": []}])
def test_files_of_another_shape(tmp_path: Path, content: Any) -> None:
    with pytest.raises(ValueError, match=r"visdial.json: found .*, expected an object with the list 'questions'"):
        VisualDialog(write(tmp_path / "visdial.json", content), str(tmp_path)).load()
