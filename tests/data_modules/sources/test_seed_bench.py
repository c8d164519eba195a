from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_modules.sources import SeedBench
from tests.data_modules.files import touch, write
from tests.data_modules.sources.held_out import samples, score, turns


def question(**changes: Any) -> dict[str, Any]:
    return {
        "answer": "D",
        **{"choice_a": "One", "choice_b": "Two", "choice_c": "Three", "choice_d": "Four"},
        "data_id": "1454426_2591111986",
        "data_type": "image",
        "question": "How many towels are in the image?",
        "question_id": "101669",
        "question_type_id": 5,
        **changes,
    }


def seed(folder: Path, *questions: Any, **settings: Any) -> SeedBench:
    content = {"questions": questions, "question_type": {"Scene Understanding": 1, "Instances Counting": 5}}
    images = touch(folder / "SEED-Bench-image", "1454426_2591111986")
    return SeedBench(write(folder / "SEED-Bench.json", content), images, **settings)


def test_images_alone_are_asked_for_a_letter(tmp_path: Path) -> None:
    video = question(data_type="video", question_id="v1", data_id="94328.webm", question_type_id=10)
    (sample,) = samples(seed(tmp_path, question(), video))
    assert turns(sample) == [
        "<image>\nHow many towels are in the image?\nA. One\nB. Two\nC. Three\nD. Four\n"
        "Answer with the option's letter from the given choices directly.",
        "D",
    ]
    assert (sample.id, sample.task, sample.references) == ("101669", "seed_bench", ("D",))
    assert sample.question_type == "Instances Counting" and score([sample]) == 1 and not sample.candidates


def test_choices_are_ranked_as_in_the_paper(tmp_path: Path) -> None:
    (sample,) = samples(seed(tmp_path, question(), ranked=True))
    assert turns(sample) == ["<image>\nQuestion: How many towels are in the image?\nAnswer:", "Four"]
    assert (sample.task, sample.candidates) == ("choice", ("One", "Two", "Three", "Four")) and score([sample]) == 1


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"answer": "E"}, "'answer' is 'E', expected A or B or C or D"),
        ({"choice_c": ""}, "'choice_c' is empty"),
        ({"data_id": "x"}, "image .*x not found"),
        ({"question_type_id": 99}, "'question_type_id' is 99, expected one of 'question_type'"),
        ({"data_type": 1}, "'data_type' is a number, expected a text"),
    ],
)
def test_seed_bench_refuses(tmp_path: Path, changes: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValueError, match=rf"SEED-Bench.json: questions\[1\] \(question_id 2\): {rule}"):
        seed(tmp_path, question(), question(question_id="2", **changes)).load()
