"""Pictures of COCO's files, of sources and of folders: what is known of each, what is left out, and what stops."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_modules.sources import CocoCaptions, GroundedCaptions
from data_modules.synthesis.pictures import coco_pictures, folder_pictures, source_pictures
from data_modules.synthesis.request import NamedBox

IMAGES = [{"id": k, "file_name": f"{k}.jpg", "width": 200, "height": 100} for k in (1, 2, 3)]
CAPTIONS = {
    "images": IMAGES,
    "annotations": [
        {"id": 10, "image_id": 2, "caption": " Two dogs. "},
        {"id": 11, "image_id": 1, "caption": "A dog and people."},
        {"id": 12, "image_id": 2, "caption": "Dogs."},
    ],
}
INSTANCES = {
    "images": IMAGES,
    "annotations": [
        {"id": 20, "image_id": 1, "category_id": 5, "bbox": [20, 10, 50, 25], "iscrowd": 0},
        {"id": 21, "image_id": 1, "category_id": 9, "bbox": [0, 0, 200, 50], "iscrowd": 1},
        {"id": 22, "image_id": 1, "category_id": 9, "bbox": [10, 10, 0, 5], "iscrowd": 0},
        {"id": 23, "image_id": 3, "category_id": 9, "bbox": [10, 10, 5, 5], "iscrowd": 0},
    ],
    "categories": [{"id": 5, "name": "dog"}, {"id": 9, "name": "person"}],
}


def write(folder: Path, captions: Any = CAPTIONS, instances: Any = INSTANCES) -> tuple[str, str, str]:
    images = folder / "images"
    images.mkdir(exist_ok=True)
    for k in (1, 2, 3):
        Image.new("RGB", (200, 100)).save(images / f"{k}.jpg")
    (folder / "captions.json").write_text(json.dumps(captions))
    (folder / "instances.json").write_text(json.dumps(instances))
    return str(folder / "captions.json"), str(folder / "instances.json"), str(images)


def test_captions_and_boxes_of_coco(tmp_path: Path) -> None:
    found = coco_pictures(*write(tmp_path), prefix="coco/train/")
    assert [(each.id, each.image) for each in found.pictures] == [("1", "coco/train/1.jpg"), ("2", "coco/train/2.jpg")]
    first, second = (each.context for each in found.pictures)
    assert first.captions == ("A dog and people.",)
    assert first.boxes == (
        NamedBox("dog", (0.1, 0.1, 0.35, 0.35)),
        NamedBox("person", (0.0, 0.0, 1.0, 0.5), crowd=True),
    )
    assert (second.captions, second.boxes) == (("Two dogs.", "Dogs."), ())
    assert (first.width, first.height) == (200, 100)
    assert found.counts == {
        "pictures": 2,
        "without captions": 1,
        "without boxes": 1,
        "boxes": 2,
        "crowd boxes": 1,
        "boxes without area": 1,
    }
    assert found.pictures[0].file.read(10_000)[:2] == b"\xff\xd8"


def test_captions_alone(tmp_path: Path) -> None:
    captions, _, images = write(tmp_path)
    found = coco_pictures(captions, None, images)
    assert [each.context.boxes for each in found.pictures] == [(), ()]


@pytest.mark.parametrize(
    ("file", "list", "index", "key", "value", "sentence"),
    [
        ("captions", "annotations", 0, "caption", " ", "captions.json: images[1] (id 2): 'caption' is empty"),
        ("captions", "images", 0, "width", 0, "captions.json: images[0] (id 1): is 0 x 100 pixels"),
        ("captions", "images", 0, "file_name", "9.jpg", "9.jpg not found"),
        ("captions", "annotations", 1, "image_id", 7, "image_id 7 is not in 'images'"),
        ("instances", "annotations", 0, "category_id", 6, "annotation 20: category_id is 6, expected one of the 2"),
        ("instances", "annotations", 0, "bbox", [1, 2, 3], "'bbox' has 3 numbers, expected 4"),
    ],
)
def test_what_breaks_a_rule_stops(
    tmp_path: Path, file: str, list: str, index: int, key: str, value: object, sentence: str
) -> None:
    files = {"captions": copy.deepcopy(CAPTIONS), "instances": copy.deepcopy(INSTANCES)}
    broken: Any = files[file]
    broken[list][index][key] = value
    with pytest.raises(ValueError) as found:
        coco_pictures(*write(tmp_path, **files))
    assert sentence in str(found.value)


def test_any_source_of_captions(tmp_path: Path) -> None:
    captions, _, images = write(tmp_path)
    found = source_pictures(CocoCaptions(captions, images, per="image"), prefix="c/")
    told = {each.image: each.context.captions for each in found.pictures}
    assert told == {"c/1.jpg": ("A dog and people.",), "c/2.jpg": ("Two dogs.", "Dogs.")}
    assert found.pictures[0].context.width == 200


def test_a_source_of_captions_with_boxes(tmp_path: Path) -> None:
    _, _, images = write(tmp_path)
    text = "a small brown dog beside two men"
    entry = {**IMAGES[0], "caption": text}
    spans = [(0, 17, [20, 10, 50, 25]), (25, 32, [100, 0, 100, 100])]
    annotations = [
        {"id": k, "image_id": 1, "bbox": box, "tokens_positive": [[start, end]]}
        for k, (start, end, box) in enumerate(spans)
    ]
    path = tmp_path / "grounded.json"
    path.write_text(json.dumps({"images": [entry], "annotations": annotations}))
    (picture,) = source_pictures(GroundedCaptions(str(path), images, dialect="llava")).pictures
    assert picture.context.captions == (text,)
    assert picture.context.boxes == (NamedBox("dog", (0.1, 0.1, 0.35, 0.35)), NamedBox("person", (0.5, 0.0, 1.0, 1.0)))
    squared = GroundedCaptions(str(path), images, dialect="llava", frame="square")
    with pytest.raises(ValueError, match="frame: found 'square', expected 'image'"):
        source_pictures(squared)


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    images = Path(write(tmp_path)[2])
    (images / "sub").mkdir()
    (images / "1.jpg").rename(images / "sub/7.jpg")
    found = folder_pictures(str(images), prefix="sam/")
    assert [(each.id, each.image) for each in found.pictures] == [
        ("2", "sam/2.jpg"),
        ("3", "sam/3.jpg"),
        ("sub/7", "sam/sub/7.jpg"),
    ]
    assert found.pictures[0].context.captions == ()
    (images / "2.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"2\.jpg: cannot read the image"):
        folder_pictures(str(images))
    with pytest.raises(ValueError, match="found no image"):
        folder_pictures(str(tmp_path / "nowhere"))
