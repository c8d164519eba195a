from __future__ import annotations

from typing import Any

import pytest

from data_modules.containers.reading import RecordError
from data_modules.dialects.conversation import Conversation, Utterance
from data_modules.dialects.objects import told
from lightning_mllm.boxes import Frame

TURNS = (Utterance("user", "Where is <ref-object>?"), Utterance("assistant", "At <bbox>."))
PIXELS = {"ref": ["the dog"], "bbox": [[10, 20, 30, 40]], "width": 100, "height": 50}


TALL = {"width": 50, "height": 100}


def texts(objects: dict[str, Any], dialect: str = "llava", frame: Frame | None = "image") -> list[str]:
    return [turn.text for turn in told(Conversation(turns=TURNS, objects=objects), dialect, frame).turns]


@pytest.mark.parametrize(
    ("objects", "frame", "box"),
    [
        (PIXELS, "image", "[0.10, 0.40, 0.30, 0.80]"),
        (PIXELS, "square", "[0.10, 0.45, 0.30, 0.65]"),
        ({**PIXELS, "width": [100], "height": [50], "image_id": [0]}, "image", "[0.10, 0.40, 0.30, 0.80]"),
        ({**PIXELS, "bbox": [[0.1, 0.4, 0.3, 0.8]], "bbox_type": "norm1"}, "square", "[0.10, 0.45, 0.30, 0.65]"),
        (
            {"ref": ["the dog"], "bbox": [[0.1, 0.4, 0.3, 0.8]], "bbox_type": "norm1"},
            "image",
            "[0.10, 0.40, 0.30, 0.80]",
        ),
        ({**PIXELS, "bbox": [[100, 400, 300, 800]], "bbox_type": "norm1000"}, "image", "[0.10, 0.40, 0.30, 0.80]"),
        (
            {**PIXELS, "bbox": [[0.1, 0.45, 0.3, 0.65]], "bbox_type": "norm1", "frame": "square"},
            "image",
            "[0.10, 0.40, 0.30, 0.80]",
        ),
        (
            {**PIXELS, "bbox": [[0.45, 0.1, 0.65, 0.3]], "bbox_type": "norm1", "frame": "square", **TALL},
            "image",
            "[0.40, 0.10, 0.80, 0.30]",
        ),
        ({**PIXELS, "frame": None, "bbox_type": None}, "image", "[0.10, 0.40, 0.30, 0.80]"),
    ],
)
def test_boxes_are_told_in_the_frame_of_the_texts(objects: dict[str, Any], frame: Frame, box: str) -> None:
    assert texts(objects, frame=frame) == ["Where is the dog?", f"At {box}."]


def test_marks_are_words_where_nothing_stands_for_them() -> None:
    assert [turn.text for turn in told(Conversation(turns=TURNS), "", None).turns] == [turn.text for turn in TURNS]


@pytest.mark.parametrize(
    ("objects", "rule"),
    [
        ({"ref": ["a", "b"], "bbox": [[0, 0, 1, 1]]}, "found 1 <ref-object> marks and 2 of 'objects.ref'"),
        ({**PIXELS, "bbox": []}, "found 1 <bbox> marks and 0 of 'objects.bbox'"),
        ({**PIXELS, "ref": [3]}, "'objects.ref' holds 3, expected names"),
        ({**PIXELS, "bbox": [[1, 2, 3]]}, "'objects.bbox' 0 is .1, 2, 3., expected four numbers"),
        ({**PIXELS, "bbox": [[1, 2, 3, "4"]]}, "expected four numbers"),
        ({**PIXELS, "bbox": [[30, 20, 10, 40]]}, "expected x0 < x1 and y0 < y1"),
        ({**PIXELS, "bbox": [[0.1, 0.2, 1.5, 1]], "bbox_type": "norm1"}, "expected numbers of 0 to 1$"),
        ({**PIXELS, "bbox": [[200, 20, 300, 40]]}, "has no area inside the image"),
        ({**PIXELS, "bbox_type": "pixels"}, "'bbox_type' is 'pixels', expected real or norm1 or norm1000"),
        ({**PIXELS, "frame": "circle"}, "'frame' is 'circle', expected image or square"),
        ({**PIXELS, "width": None}, "needs the size of its image, expected 'objects.width' in pixels"),
        ({**PIXELS, "height": [50], "image_id": [1]}, "expected 'objects.height' in pixels"),
        ({**PIXELS, "bbox": {"a": 1}}, "'bbox' is an object, expected a list"),
    ],
)
def test_boxes_that_are_none(objects: dict[str, Any], rule: str) -> None:
    with pytest.raises(RecordError, match=rule):
        texts(objects)


def test_boxes_need_a_spelling_and_a_frame() -> None:
    for dialect, frame in (("", "image"), ("llava", None)):
        with pytest.raises(RecordError, match="expected the settings 'boxes' and 'frame'"):
            texts(PIXELS, dialect, frame)  # pyright: ignore[reportArgumentType]
