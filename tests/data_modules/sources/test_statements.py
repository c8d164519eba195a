from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_modules.sources import HatefulMemes, Vsr
from tests.data_modules.files import touch, write
from tests.data_modules.sources.held_out import samples, score, turns


def seen(**changes: Any) -> dict[str, Any]:
    return {
        "image": "000000017697.jpg",
        "image_link": "http://images.cocodataset.org/train2017/000000017697.jpg",
        "caption": "The car is behind the suitcase.",
        "label": 1,
        "relation": "behind",
        "subj": "car",
        "obj": "suitcase",
        "annotator_id": 2,
        "vote_true_validator_id": "[18, 2]",
        "vote_false_validator_id": "[1]",
        **changes,
    }


def vsr(folder: Path, records: list[Any], **settings: Any) -> Vsr:
    return Vsr(write(folder / "test.jsonl", records), touch(folder / "images", "000000017697.jpg"), **settings)


def test_vsr_ranks_two_words_of_each_class(tmp_path: Path) -> None:
    false = seen(caption="The car is under the suitcase.", relation="under", label=0)
    given = samples(vsr(tmp_path, [seen(), false]))
    asks = '<image>\nBased on the image, is this statement true or false? "The car is {} the suitcase." Answer:'
    assert [turns(sample) for sample in given] == [[asks.format("behind"), "yes"], [asks.format("under"), "no"]]
    assert [sample.references for sample in given] == [("yes", "true"), ("no", "false")]
    assert {sample.candidates for sample in given} == {("yes", "true", "no", "false")}
    assert {sample.task for sample in given} == {"choice"} and len({sample.id for sample in given}) == 2
    assert score(given) == 1
    plain = samples(vsr(tmp_path, [seen(), false], positive=["yes"], negative=["no"]))
    assert {sample.candidates for sample in plain} == {("yes", "no")} and score(plain, right=False) == 0


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"label": 2}, "'label' is 2, expected 0 or 1"),
        ({"label": "1"}, "'label' is a text, expected a number"),
        ({"caption": ""}, "'caption' is empty"),
        ({"image": "000000000001.jpg"}, "image .*000000000001.jpg not found"),
        ({"image": "../test.jsonl"}, "expected a path inside"),
        ({}, "the id 000000017697.jpg The car is behind the suitcase. occurs twice"),
    ],
)
def test_vsr_refuses(tmp_path: Path, changes: dict[str, Any], rule: str) -> None:
    source = vsr(tmp_path, [seen(), seen(**changes)])
    with pytest.raises(ValueError, match=rf"test.jsonl:2 \(image [^)]+\): .*{rule}"):
        source.load()


@pytest.mark.parametrize(("positive", "negative"), [(["yes"], []), (["yes"], ["no", "yes"])])
def test_words_tell_the_classes_apart(tmp_path: Path, positive: list[str], negative: list[str]) -> None:
    with pytest.raises(ValueError, match=r"positive, negative: found .* expected different words in each"):
        vsr(tmp_path, [], positive=positive, negative=negative)


def meme(id: int = 42953, **changes: Any) -> dict[str, Any]:
    return {"id": id, "img": "img/42953.png", "label": 0, "text": 'they call it "dirt"', **changes}


def memes(folder: Path, records: list[Any]) -> HatefulMemes:
    return HatefulMemes(write(folder / "dev.jsonl", records), touch(folder, "img/42953.png"))


def test_hateful_memes_rank_yes_and_no(tmp_path: Path) -> None:
    given = samples(memes(tmp_path, [meme(), meme(8291, label=1, text="a")]))
    assert turns(given[0]) == [
        '<image>\nThis is an image with: "they call it "dirt"" written on it. Is it hateful? Answer:',
        "no",
    ]
    assert [(sample.id, sample.references) for sample in given] == [("42953", ("no",)), ("8291", ("yes",))]
    assert {(sample.task, sample.candidates) for sample in given} == {("auc", ("yes", "no"))}
    assert given[0].images[0].name.endswith("img/42953.png")
    assert (score(given), score(given, right=False)) == (1, 0)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"label": -1}, "'label' is -1, expected 0 or 1"),
        ({"label": None}, "'label' is null, expected a number"),
        ({"img": "img/1.png"}, "image .*img/1.png not found"),
        ({"text": None}, "'text' is null, expected a text"),
        ({"id": 42953}, "the id 42953 occurs twice"),
    ],
)
def test_hateful_memes_refuse(tmp_path: Path, changes: dict[str, Any], rule: str) -> None:
    source = memes(tmp_path, [meme(), meme(**{"id": 1, **changes})])
    with pytest.raises(ValueError, match=rf"dev.jsonl:2 \(id \d+\): {rule}"):
        source.load()


def test_a_line_that_is_no_json(tmp_path: Path) -> None:
    source = memes(tmp_path, [meme()])
    with Path(source.annotations).open("a") as file:
        file.write('\n{"id": 7, "img"\n')
    with pytest.raises(ValueError, match=r"dev.jsonl:3: line 1, column 16: expected JSON"):
        source.load()
