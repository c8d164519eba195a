from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from data_modules.sources import GroundedCaptions
from lightning_mllm.boxes import Box, read
from tests.data_modules.files import touch, write
from tests.data_modules.sources.held_out import samples, turns

CAPTION = "Two dogs and a man on a sofa ."


def image(id: int, **changes: Any) -> dict[str, Any]:
    known = {"file_name": "1.jpg", "height": 100, "width": 200, "dataset_name": "flickr", "original_img_id": 1}
    return {"id": id, "caption": CAPTION, "tokens_negative": [[0, 30]], **known, **changes}


def box(id: int, phrase: str, left: int, image: int = 0, **changes: Any) -> dict[str, Any]:
    start = CAPTION.index(phrase)
    known = {"category_id": 1, "iscrowd": 0, "area": 500, "tokens_positive": [[start, start + len(phrase)]]}
    return {"id": id, "image_id": image, "bbox": [left, 10, 20, 50], **known, **changes}


def source(folder: Path, images: Sequence[Any], annotations: Sequence[Any], **settings: Any) -> GroundedCaptions:
    path = write(folder / "flickr.json", {"images": images, "annotations": annotations, "categories": []})
    given: dict[str, Any] = {"dialect": "cogvlm", "prompt": "grounded_caption/include", **settings}
    return GroundedCaptions(path, touch(folder / "images", "1.jpg"), **given)


def test_boxes_stand_behind_their_phrases(tmp_path: Path) -> None:
    boxes = [box(0, "a man", 100), box(1, "Two dogs", 0), box(2, "Two dogs", 40), box(3, "a sofa", 0)]
    (found,) = samples(source(tmp_path, [image(0), image(1)], boxes))
    said = turns(found)
    assert said[0] == "<image>\nDescribe the image and include the bounding box of each object you mention."
    assert said[1] == (
        "Two dogs [[000,100,100,600;200,100,300,600]] and a man [[500,100,600,600]] on a sofa [[000,100,100,600]] ."
    )
    assert found.references == (said[1], CAPTION) and found.task == "grounded_caption"
    assert read(said[1], "cogvlm") == (
        Box(0.0, 0.1, 0.1, 0.6),
        Box(0.2, 0.1, 0.3, 0.6),
        Box(0.5, 0.1, 0.6, 0.6),
        Box(0.0, 0.1, 0.1, 0.6),
    )


def test_a_phrase_may_have_several_spans(tmp_path: Path) -> None:
    spans = [[CAPTION.index("a man"), CAPTION.index("a man") + 5], [0, 8]]
    (found,) = samples(source(tmp_path, [image(0)], [box(0, "a man", 0, tokens_positive=spans)], dialect="ferret"))
    assert turns(found)[1] == "Two dogs and a man [0, 100, 100, 600] on a sofa ."


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"tokens_positive": []}, "annotation 7: 'tokens_positive' is empty, expected at least one span"),
        ({"tokens_positive": [[4, 40]]}, "annotation 7: the span 4 to 40 is not in the caption of 30 characters"),
        ({"tokens_positive": [[8, 8]]}, "annotation 7: the span 8 to 8 is not in the caption"),
        ({"tokens_positive": [[8]]}, "annotation 7: 'tokens_positive' has 1 numbers, expected 2"),
        ({"bbox": [300, 1, 5, 5]}, "annotation 7: the box [300, 1, 5, 5] (left, top, width, height) has no area"),
    ],
)
def test_bad_records(tmp_path: Path, changes: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValueError) as error:
        source(tmp_path, [image(0)], [box(7, "a man", 0, **changes)]).load()
    assert "flickr.json: images[0] (id 0): " in str(error.value) and rule in str(error.value)


def test_a_template_with_a_field_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"prompt: found \{expression\} in .*, expected no field of this source"):
        source(tmp_path, [], [], prompt="referring/where")
