from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_modules.sources import IconQa, ScienceQa
from tests.data_modules.files import touch, write
from tests.data_modules.sources.held_out import samples, score, turns


def icons(**changes: Any) -> dict[str, Any]:
    return {
        "question": "How many shapes are blue?",
        "choices": ["4", "1", "3"],
        "answer": 2,
        "ques_type": "choose_txt",
        "grade": "prek",
        "label": "S2",
        "split": "test",
        **changes,
    }


def iconqa(
    folder: Path, problems: Any, splits: Any, form: Any = "choose_txt", split: str = "test", **settings: Any
) -> IconQa:
    images = touch(
        folder / "iconqa",
        "test/choose_txt/19/image.png",
        "val/choose_txt/7/image.png",
        "test/fill_in_blank/3/image.png",
    )
    problems = write(folder / "problems.json", problems)
    return IconQa(problems, images, form, write(folder / "pid_splits.json", splits), split, **settings)


def test_iconqa_names_and_ranks_the_choices(tmp_path: Path) -> None:
    problems = {"7": icons(split="val", answer=0), "19": icons(), "20": icons(ques_type="choose_img")}
    splits = {"choose_txt_test": ["19"], "choose_txt_trainval": ["19", "7"], "choose_img_test": ["20"]}
    (sample,) = samples(iconqa(tmp_path, problems, splits))
    request = "<image>\nQuestion: How many shapes are blue? Options: (a) 4 (b) 1 (c) 3. Short answer:"
    assert turns(sample) == [request, "3"]
    assert (sample.id, sample.task, sample.references) == ("19", "choice", ("3",))
    assert sample.candidates == ("4", "1", "3") and score([sample]) == 1
    assert sample.images[0].name.endswith("iconqa/test/choose_txt/19/image.png")
    mixed = samples(iconqa(tmp_path, problems, splits, split="trainval"))
    assert [each.id for each in mixed] == ["19", "7"], "in the order of the split"
    assert mixed[1].images[0].name.endswith("iconqa/val/choose_txt/7/image.png")


def test_iconqa_fill_in_blank(tmp_path: Path) -> None:
    blank = icons(ques_type="fill_in_blank", answer="12", question="The clock shows (_) o'clock.")
    del blank["choices"]
    (sample,) = samples(iconqa(tmp_path, {"3": blank}, {"fill_in_blank_test": ["3"]}, "fill_in_blank"))
    assert turns(sample) == ["<image>\nQuestion: The clock shows (_) o'clock. Short answer:", "12"]
    assert (sample.task, sample.references, sample.candidates) == ("exact", ("12",), ()) and score([sample]) == 1


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"answer": 3}, "'answer' is 3, expected 0 to 2"),
        ({"answer": -1}, "'answer' is -1, expected 0 to 2"),
        ({"answer": "3"}, "'answer' is a text, expected a number"),
        ({"choices": []}, "'choices' is empty"),
        ({"choices": ["3"], "answer": 0}, "found 1 of options, expected at least 2"),
        ({"choices": ["4", 1, "3"]}, "'choices' is a number, expected a text"),
        ({"ques_type": "choose_img"}, "'ques_type' is 'choose_img', expected choose_txt"),
        ({"split": "minitest"}, "'split' is 'minitest', expected train or val or test"),
        ({"split": "train"}, "image .*train/choose_txt/19/image.png not found"),
    ],
)
def test_iconqa_refuses(tmp_path: Path, changes: dict[str, Any], rule: str) -> None:
    source = iconqa(tmp_path, {"19": icons(**changes)}, {"choose_txt_test": ["19"]})
    with pytest.raises(ValueError, match=rf"problems.json: record '19' \(id 19\): {rule}"):
        source.load()


@pytest.mark.parametrize(
    ("splits", "rule"),
    [
        (
            {"choose_txt_test": ["19", "20"]},
            "pid_splits.json: 'choose_txt_test' names the problem '20', expected one in",
        ),
        ({"choose_txt_test": ["19", "19"]}, r"problems.json: record '19' \(id 19\): the id 19 occurs twice"),
        ({"choose_txt_val": []}, "pid_splits.json: split is 'choose_txt_test', expected choose_txt_val"),
        ({"choose_txt_test": {}}, "pid_splits.json: found the keys .*, expected the list 'choose_txt_test'"),
        (["19"], "pid_splits.json: found a list, expected an object with the list 'choose_txt_test'"),
        ({"choose_txt_test": []}, "found no usable record"),
    ],
)
def test_splits_that_do_not_go_with_the_problems(tmp_path: Path, splits: Any, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        iconqa(tmp_path, {"19": icons()}, splits).load()


def test_iconqa_knows_its_forms(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="form: found 'choose_img', expected 'choose_txt' or 'fill_in_blank'"):
        iconqa(tmp_path, {}, {}, "choose_img")


def science(**changes: Any) -> dict[str, Any]:
    return {
        "question": "Which of these states is farthest north?",
        "choices": ["West Virginia", "Louisiana", "Arizona", "Oklahoma"],
        "answer": 0,
        "hint": "Look at the map.",
        "image": "image.png",
        "task": "closed choice",
        "grade": "grade2",
        "subject": "social science",
        "topic": "geography",
        "category": "Geography",
        "skill": "Read a map: cardinal directions",
        "lecture": "Maps have four cardinal directions.",
        "solution": "To find the answer, look at the compass rose.",
        "split": "train",
        **changes,
    }


def scienceqa(folder: Path, problems: Any, **settings: Any) -> ScienceQa:
    splits = {"train": list(problems), "minitrain": list(problems)[:1]}
    images = touch(folder / "images", "train/1/image.png")
    file = write(folder / "problems.json", problems)
    return ScienceQa(file, images, write(folder / "pid_splits.json", splits), **{"split": "train", **settings})


def test_scienceqa_tells_the_hint_and_ranks_the_choices(tmp_path: Path) -> None:
    (sample,) = samples(scienceqa(tmp_path, {"1": science()}))
    assert turns(sample) == [
        "<image>\nContext: Look at the map. Question: Which of these states is farthest north?"
        " Options: (a) West Virginia (b) Louisiana (c) Arizona (d) Oklahoma. Answer:",
        "West Virginia",
    ]
    assert (sample.id, sample.task, sample.references) == ("1", "choice", ("West Virginia",))
    assert sample.candidates == ("West Virginia", "Louisiana", "Arizona", "Oklahoma") and score([sample]) == 1
    (taught,) = samples(scienceqa(tmp_path, {"1": science()}, lecture=True))
    assert "Context: Look at the map. Maps have four cardinal directions. Question:" in turns(taught)[0]
    (bare,) = samples(scienceqa(tmp_path, {"1": science(hint="")}))
    assert turns(bare)[0].startswith("<image>\nQuestion: Which")


def test_scienceqa_without_an_image(tmp_path: Path) -> None:
    problems = {"1": science(), "2": science(image=None)}
    assert [sample.id for sample in samples(scienceqa(tmp_path, problems))] == ["1"]
    shown, told = samples(scienceqa(tmp_path, problems, with_image=False))
    assert len(shown.images) == 1 and not told.images
    assert turns(told)[0].startswith("Context: Look at the map. Question:")
    assert [sample.id for sample in samples(scienceqa(tmp_path, problems, split="minitrain"))] == ["1"]


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"answer": 4}, "'answer' is 4, expected 0 to 3"),
        ({"choices": []}, "'choices' is empty"),
        ({"image": 1}, "'image' is a number, expected a text or null"),
        ({"image": "choice_0.png"}, "image .*train/1/choice_0.png not found"),
        ({"hint": None}, "'hint' is null, expected a text"),
        ({"lecture": None}, "'lecture' is null, expected a text"),
        ({"split": "dev"}, "'split' is 'dev', expected train or val or test"),
        ({"question": "<image>"}, "'<image>' has an <image> mark"),
    ],
)
def test_scienceqa_refuses(tmp_path: Path, changes: dict[str, Any], rule: str) -> None:
    source = scienceqa(tmp_path, {"1": science(**changes)}, lecture=True)
    with pytest.raises(ValueError, match=rf"problems.json: record '1' \(id 1\): {rule}"):
        source.load()
