from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_modules.sources import CocoPose
from tests.data_modules.files import touch, write
from tests.data_modules.sources.held_out import samples, turns

JOINTS = ["nose", "left_eye", "right_shoulder"]


def person(id: int = 3, **changes: Any) -> dict[str, Any]:
    known = {"category_id": 1, "iscrowd": 0, "num_keypoints": 2, "bbox": [20, 10, 100, 80], "area": 4000.0}
    return {"id": id, "image_id": 5, "keypoints": [50, 25, 2, 0, 0, 0, 60, 50, 1], **known, **changes}


def source(folder: Path, people: list[Any], joints: Any = JOINTS, **settings: Any) -> CocoPose:
    image = {"id": 5, "file_name": "5.jpg", "width": 200, "height": 100}
    category = {"id": 1, "name": "person", "keypoints": joints, "skeleton": [[1, 2]]}
    content = {"images": [image], "annotations": people, "categories": [category]}
    given: dict[str, Any] = {"dialect": "llava", "prompt": "pose/keypoints", **settings}
    return CocoPose(write(folder / "keypoints.json", content), touch(folder / "images", "5.jpg"), **given)


def test_labelled_joints_are_named_with_their_places(tmp_path: Path) -> None:
    (found,) = samples(source(tmp_path, [person()]))
    assert turns(found) == [
        "<image>\nDetect the key points of the person in the region [0.10, 0.10, 0.60, 0.90].",
        "nose [0.25, 0.25], right shoulder [0.30, 0.50]",
    ]
    assert (found.id, found.task) == ("3", "pose")


def test_points_are_in_the_frame_of_the_boxes(tmp_path: Path) -> None:
    (found,) = samples(source(tmp_path, [person()], dialect="cogvlm", frame="square"))
    assert "[[100,300,600,700]]" in turns(found)[0]
    assert turns(found)[1] == "nose [[250,375]], right shoulder [[300,500]]"


def test_crowds_and_people_without_joints_are_left_out(tmp_path: Path) -> None:
    nobody, crowd = person(4, keypoints=[0] * 9, num_keypoints=0), person(5, iscrowd=1)
    assert [each.id for each in samples(source(tmp_path, [nobody, crowd, person(6)]))] == ["6"]


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"keypoints": [1, 2, 2]}, "'keypoints' has 3 numbers, expected 9"),
        ({"keypoints": [50, 25, 3, *[0] * 6]}, "the nose has the flag 3, expected 0, 1 or 2"),
        ({"keypoints": [0, 0, 0, 201, 25, 1, 0, 0, 0]}, "the left eye is at 201, 25, expected a place in 200 x 100"),
        ({"category_id": 2}, "category_id is 2, expected one of the 1 categories"),
        ({"bbox": [0, 0, 0, 0]}, "has no area inside the image"),
    ],
)
def test_bad_records(tmp_path: Path, changes: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValueError) as error:
        source(tmp_path, [person(**changes)]).load()
    assert "keypoints.json: images[0] (id 5): annotation 3: " in str(error.value) and rule in str(error.value)


def test_categories_must_name_their_joints(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"keypoints.json: categories\[0\] \(id 1\): 'keypoints' is null"):
        source(tmp_path, [person()], joints=None).load()
