from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_modules.sources import VisualGenomeQa
from tests.data_modules.files import generator, touch, write


def asked(id: int, image: int = 1, **changes: Any) -> dict[str, Any]:
    known = {"question": "What color is the clock?", "answer": "Green.", "a_objects": [], "q_objects": []}
    return {"qa_id": id, "image_id": image, **known, **changes}


def source(folder: Path, records: list[Any], **settings: Any) -> VisualGenomeQa:
    images = touch(folder / "images", "1.jpg", "2.jpg")
    made = VisualGenomeQa(write(folder / "question_answers.json", records), images, **settings)
    made.load()
    return made


def test_a_record_is_an_image_with_its_questions(tmp_path: Path) -> None:
    records = [{"id": 1, "qas": [asked(986768), asked(986769)]}, {"id": 2, "qas": []}]
    made = source(tmp_path, records, prompt="Question: {question} Answer:")
    assert len(made) == 2
    sample = made.sample(1, generator())
    assert sample.id == "986769" and sample.images[0].name.endswith("/1.jpg") and sample.references == ("Green.",)
    assert [turn.text for turn in sample.turns] == ["<image>\nQuestion: What color is the clock? Answer:", "Green."]


@pytest.mark.parametrize(
    ("qas", "rule"),
    [
        ([asked(5, 2)], "question 5 is about the image 2, expected 1 as its record"),
        ([asked(5), asked(5)], "the id 5 occurs twice, expected different ones"),
        ([asked(5, answer=" ")], "'answer' is empty"),
        ([asked(5, question=3)], "'question' is a number, expected a text"),
    ],
)
def test_bad_records(tmp_path: Path, qas: list[Any], rule: str) -> None:
    with pytest.raises(ValueError) as error:
        source(tmp_path, [{"id": 1, "qas": qas}])
    assert "question_answers.json: record 0 (id 1): " in str(error.value) and rule in str(error.value)
