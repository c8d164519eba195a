from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_modules.sources import Pope, PopeObjects
from tests.data_modules.files import touch, write
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


SHOWN = {1: [1, 2], 2: [1, 2, 3], 3: [1, 2, 3], 4: [4, 5], 5: [4, 6], 6: [4]}
"""Image -> its categories: 1 dog, 2 cat, 3 owl, 4 car, 5 bus, 6 ant."""
NAMES = ("dog", "cat", "owl", "car", "bus", "ant")


def objects(folder: Path, **settings: Any) -> PopeObjects:
    content = {
        "images": [{"id": n, "file_name": f"{n}.jpg"} for n in SHOWN],
        "annotations": [
            {"id": 10 * n + place, "image_id": n, "category_id": each}
            for n, of in SHOWN.items()
            for place, each in enumerate([*of, of[0]])
        ],
        "categories": [{"id": n, "name": name} for n, name in enumerate(NAMES, 1)],
    }
    images = touch(folder / "images", *(f"{n}.jpg" for n in SHOWN))
    return PopeObjects(write(folder / "instances.json", content), images, **settings)


def absent(folder: Path, image: int, **settings: Any) -> list[str]:
    """What is asked about an image that is not there."""
    given = [each for each in samples(objects(folder, **settings)) if each.id.startswith(f"{image}-")]
    return [each.turns[0].text.split(" in the")[0].split()[-1] for each in given if each.references == ("no",)]


def test_pope_is_made_of_objects(tmp_path: Path) -> None:
    given = samples(objects(tmp_path, each=2))
    assert [each.id.split("-")[0] for each in given] == [str(n) for n in (1, 2, 3, 4, 5) for _ in range(4)]
    for each in given:
        image, category = map(int, each.id.split("-"))
        assert (each.references == ("yes",)) is (category in SHOWN[image])
    assert [each.references[0] for each in given[:4]] == ["yes", "yes", "no", "no"]
    asked = {turns(each)[0].splitlines()[1] for each in given}
    assert {"Is there an owl in the image?", "Is there a dog in the image?"} <= asked
    assert samples(objects(tmp_path, each=2)) == given != samples(objects(tmp_path, each=2, seed=1))


def test_what_is_absent_is_popular_or_stands_beside_what_is_there(tmp_path: Path) -> None:
    # Three images each have a dog, a cat and a car, two an owl.
    assert sorted(absent(tmp_path, 4, each=2, absent="popular")) == ["cat", "dog"]
    assert absent(tmp_path, 1, each=2, absent="popular")[:2] == ["car", "owl"]
    # Beside dogs and cats there are owls, and never cars.
    assert absent(tmp_path, 1, each=1, absent="adversarial") == ["owl"]
    assert absent(tmp_path, 4, each=1, absent="adversarial") == ["ant"]


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"absent": "rare"}, "absent: found 'rare', expected random, popular, adversarial"),
        ({"each": 0}, "each: found 0, expected at least 1"),
        ({"each": 4}, "instances.json: found no usable record"),
    ],
)
def test_pope_of_objects_refuses(tmp_path: Path, settings: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        objects(tmp_path, **settings).load()
