from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_modules.sources import Pope
from tests.data_modules.files import touch
from tests.data_modules.sources.held_out import samples, score, turns

IMAGE = "COCO_val2014_000000310196.jpg"


def line(**changes: Any) -> dict[str, Any]:
    return {"question_id": 1, "image": IMAGE, "text": "Is there a snowboard in the image?", "label": "yes", **changes}


def pope(folder: Path, *records: dict[str, Any]) -> Pope:
    """JSON lines in a file whose name ends in .json, as published."""
    file = folder / "coco_pope_random.json"
    file.write_text("".join(json.dumps(each) + "\n" for each in records))
    return Pope(str(file), touch(folder / "val2014", IMAGE))


def test_pope_is_asked_for_a_word(tmp_path: Path) -> None:
    given = samples(pope(tmp_path, line(), line(question_id=2, text="Is there a car in the image?", label="no")))
    asks = "<image>\nIs there a {} in the image?\nAnswer the question using a single word or phrase."
    assert [turns(each) for each in given] == [[asks.format("snowboard"), "yes"], [asks.format("car"), "no"]]
    assert [(each.id, each.references, each.candidates, each.task) for each in given] == [
        ("1", ("yes",), (), "pope"),
        ("2", ("no",), (), "pope"),
    ]
    assert score(given) == 1


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"label": "maybe"}, "'label' is 'maybe', expected yes or no"),
        ({"image": "a.jpg"}, "image .*a.jpg not found"),
        ({"text": " "}, "'text' is empty"),
        ({"question_id": 1}, "the id 1 occurs twice"),
    ],
)
def test_pope_refuses(tmp_path: Path, changes: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValueError, match=rf"coco_pope_random.json:2 \(question_id \d\): {rule}"):
        pope(tmp_path, line(), line(**{"question_id": 2, **changes})).load()
