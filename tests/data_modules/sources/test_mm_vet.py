from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_modules.sources import MmVet
from tests.data_modules.files import touch, write
from tests.data_modules.sources.held_out import samples, turns


def record(**changes: Any) -> dict[str, Any]:
    return {
        "imagename": "v1_0.png",
        "question": "What is x in the equation?",
        "answer": "-1<AND>-5",
        "imagesource": "somewhere",
        "capability": ["ocr", "math"],
        **changes,
    }


def mm_vet(folder: Path, **changes: Any) -> MmVet:
    return MmVet(write(folder / "mm-vet.json", {"v1_0": record(**changes)}), touch(folder / "images", "v1_0.png"))


def test_questions_are_put_as_they_are(tmp_path: Path) -> None:
    (sample,) = samples(mm_vet(tmp_path))
    assert turns(sample) == ["<image>\nWhat is x in the equation?", "-1<AND>-5"]
    assert (sample.id, sample.task, sample.question_type) == ("v1_0", "judged", "math+ocr")
    assert sample.references == ("-1<AND>-5",)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"capability": []}, "'capability' is empty"),
        ({"capability": "ocr"}, "'capability' is a text, expected a list"),
        ({"answer": ""}, "'answer' is empty"),
        ({"imagename": "v1_1.png"}, "image .*v1_1.png not found"),
    ],
)
def test_mm_vet_refuses(tmp_path: Path, changes: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValueError, match=rf"mm-vet.json: record 'v1_0' \(id v1_0\): {rule}"):
        mm_vet(tmp_path, **changes).load()
