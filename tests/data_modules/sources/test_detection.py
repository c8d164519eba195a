from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from data_modules.sources import CocoDetection, CocoObjects
from data_modules.sources.detection import plural
from lightning_mllm.boxes import DIALECTS, Malformed, iou, of_pixels, read
from tests.data_modules.files import SHARED, generator, touch, write
from tests.data_modules.sources.held_out import samples, score, turns

CATEGORIES = [{"id": 18, "name": "dog", "supercategory": "animal"}, {"id": 1, "name": "person"}]


def image(id: int = 5, **changes: Any) -> dict[str, Any]:
    return {"id": id, "file_name": "000000000005.jpg", "width": 200, "height": 100, **changes}


def thing(id: int, left: int, category: int = 18, **changes: Any) -> dict[str, Any]:
    known = {"category_id": category, "iscrowd": 0, "area": 500.5, "segmentation": []}
    return {"id": id, "image_id": 5, "bbox": [left, 10.0, 20, 50], **known, **changes}


def source(folder: Path, kind: Any, images: Sequence[Any], things: Sequence[Any], **settings: Any) -> Any:
    content = {"images": images, "annotations": things, "categories": CATEGORIES}
    path = write(folder / "instances.json", content)
    return kind(path, touch(folder / "images", "000000000005.jpg"), **{"dialect": "cogvlm", **settings})


def test_the_only_one_of_a_kind_is_asked_for(tmp_path: Path) -> None:
    things = [thing(1, 0), thing(2, 40, 1), thing(3, 80, 1)]
    (found,) = samples(source(tmp_path, CocoObjects, [image(), image(6)], things, prompt="referring/where"))
    assert (found.id, turns(found)) == ("1", ["<image>\nWhere is the dog?", "[[000,100,100,600]]"])
    assert score([found]) == 1.0 and score([found], right=False) == 0.0


def test_it_may_be_asked_what_it_is(tmp_path: Path) -> None:
    made = source(tmp_path, CocoObjects, [image()], [thing(1, 0)], ask="expression", prompt="region/what")
    (found,) = samples(made)
    assert turns(found) == ["<image>\nWhat is at [[000,100,100,600]] in the picture?", "the dog"]


def test_all_of_a_kind_are_asked_for(tmp_path: Path) -> None:
    things = [thing(1, 120), thing(2, 40, 1), thing(3, 0)]
    made = source(tmp_path, CocoDetection, [image()], things, prompt="detection/detect_all")
    dogs, person = samples(made)
    assert (dogs.id, person.id) == ("5-18", "5-1")
    assert turns(dogs) == [
        "<image>\nDetect all dogs shown in the image.",
        "[[000,100,100,600;600,100,700,600]]",
    ]
    assert turns(person) == ["<image>\nDetect all people shown in the image.", "[[200,100,300,600]]"]
    assert score([dogs, person]) == 1.0 and score([dogs, person], right=False) == 0.0


@pytest.mark.parametrize(
    ("one", "many"),
    {
        **{"bus": "buses", "bench": "benches", "teddy bear": "teddy bears", "wine glass": "wine glasses"},
        **{"computer mouse": "computer mice", "sheep": "sheep", "toy": "toys", "berry": "berries"},
    }.items(),
)
def test_several_of_a_category(one: str, many: str) -> None:
    assert plural(one) == many


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_number_of_a_box_counts_as_a_word(tmp_path: Path, dialect: str) -> None:
    things = [thing(1, 120), thing(2, 0), thing(3, 40, 1)]
    made = source(tmp_path, CocoDetection, [image()], things, dialect=dialect)
    made.load()
    assert made.length(0) - made.length(1) in (4, 8)  # blanks count as well where a dialect has them


@pytest.mark.parametrize("kind", [CocoObjects, CocoDetection])
def test_a_category_with_a_crowd_is_left_out(tmp_path: Path, kind: Any) -> None:
    crowd = thing(2, 40, 1, iscrowd=1, segmentation={"counts": [1], "size": [100, 200]})
    found = samples(source(tmp_path, kind, [image()], [thing(1, 0), crowd, thing(3, 80, 1)]))
    assert len(found) == 1 and "[[000,100,100,600]]" in turns(found[0])[1]


def test_too_many_of_a_kind_are_left_out(tmp_path: Path) -> None:
    things = [thing(1, 0), thing(2, 40, 1), thing(3, 80, 1)]
    assert [each.id for each in samples(source(tmp_path, CocoDetection, [image()], things, most=1))] == ["5-18"]
    with pytest.raises(ValueError, match="most: found 0, expected at least 1"):
        source(tmp_path, CocoDetection, [], [], most=0)


@pytest.mark.parametrize("kind", [CocoObjects, CocoDetection])
@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"category_id": 7}, "images[0] (id 5): annotation 3: category_id is 7, expected one of the 2 categories"),
        ({"iscrowd": None}, "images[0] (id 5): annotation 3: 'iscrowd' is null, expected a number"),
        ({"bbox": [1, 2, 3]}, "images[0] (id 5): annotation 3: 'bbox' has 3 numbers, expected 4"),
        ({"bbox": [1, 2, 3, 0]}, "images[0] (id 5): annotation 3: the box [1, 2, 3, 0] "),
        ({"image_id": 8}, "annotations[0] (id 3): image_id 8 is not in 'images'"),
    ],
)
def test_bad_records(tmp_path: Path, kind: Any, changes: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValueError) as error:
        source(tmp_path, kind, [image()], [thing(3, 0, **changes)]).load()
    assert "instances.json: " in str(error.value) and rule in str(error.value)


def test_a_missing_size_is_said_and_no_image_is_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"images\[0\] \(id 5\): 'width' is null, expected a number"):
        source(tmp_path, CocoDetection, [image(width=None)], [thing(1, 0)]).load()


COCO = SHARED / "coco_mini"


@pytest.mark.skipif(not COCO.exists(), reason="COCO's own annotations are not here")
@pytest.mark.parametrize("frame", ["image", "square"])
def test_cocos_own_instances(frame: Any) -> None:
    path = COCO / "annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    sizes = {each["id"]: (each["width"], each["height"]) for each in content["images"]}
    names = {each["id"]: each["name"] for each in content["categories"]}
    made = CocoDetection(str(path), str(COCO / "val2017"), "cogvlm", most=100, frame=frame)
    found = {each.id: turns(each)[1] for each in samples(made)}
    assert len(found) > 80
    for id, text in found.items():
        image, category = map(int, id.split("-"))
        true = [
            of_pixels(x, y, width, height, *sizes[image], frame=frame)
            for each, (x, y, width, height) in ((each, each["bbox"]) for each in content["annotations"])
            if (each["image_id"], each["category_id"]) == (image, category)
        ]
        said = read(text, "cogvlm")
        assert not isinstance(said, Malformed) and len(said) == len(true)
        for box, other in zip(said, sorted(true), strict=True):
            assert iou(box, other) > 0.9 or min(other.x1 - other.x0, other.y1 - other.y0) < 0.03
    alone = CocoObjects(str(path), str(COCO / "val2017"), "cogvlm", frame=frame)
    alone.load()
    single = sum(";" not in text for text in found.values())
    assert len(alone) == single
    asked = {alone.question(index).question.removeprefix("the ") for index in range(len(alone))}
    assert asked <= set(names.values()) and len(asked) > 20
    assert alone.sample(0, generator()).images[0].read(1 << 24)
