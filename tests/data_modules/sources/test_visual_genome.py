from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_modules.sources import VisualGenomeObjects, VisualGenomeQa, VisualGenomeRegions, VisualGenomeRelations
from tests.data_modules.files import SHARED, generator, touch, write
from tests.data_modules.sources.held_out import samples, score, turns


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


SIZES = [{"image_id": 1, "width": 800, "height": 600, "url": "", "coco_id": None, "flickr_id": None}]


def boxed(kind: Any, folder: Path, records: list[Any], sizes: Any = SIZES, **settings: Any) -> Any:
    paths = write(folder / "records.json", records), write(folder / "image_data.json", sizes)
    return kind(*paths, touch(folder / "images", "1.jpg"), **{"dialect": "cogvlm", **settings})


def region(id: int = 1382, **changes: Any) -> dict[str, Any]:
    box = {"x": 400, "y": 60, "width": 80, "height": 120}
    return {"region_id": id, "image_id": 1, "phrase": "the clock is green ", **box, **changes}


def thing(id: int, name: str, x: int = 0, **changes: Any) -> dict[str, Any]:
    return {"object_id": id, "names": [name], "synsets": [], "x": x, "y": 60, "w": 80, "h": 120, **changes}


def related(id: int = 15927, **changes: Any) -> dict[str, Any]:
    subject = {"object_id": 5, "name": "shade", "x": 0, "y": 60, "w": 80, "h": 120}
    known = {"predicate": "ON ", "subject": subject, "object": thing(6, "street", 400), "synsets": ["along.r.01"]}
    return {"relationship_id": id, **known, **changes}


def test_a_region_is_asked_for_its_box(tmp_path: Path) -> None:
    records = [{"id": 1, "regions": [region(), region(1383, phrase="a tree")]}]
    found = samples(boxed(VisualGenomeRegions, tmp_path, records, prompt="referring/region"))
    assert turns(found[0]) == [
        "<image>\nPlease provide the bounding box coordinate of the region this sentence describes:"
        " the clock is green.",
        "[[500,100,600,300]]",
    ]
    assert [each.id for each in found] == ["1382", "1383"] and score(found) == 1.0


def test_the_only_object_of_a_name_is_asked_for(tmp_path: Path) -> None:
    records = [{"image_id": 1, "objects": [thing(1, "tree"), thing(2, "clock", 400), thing(3, "tree", 80)]}]
    (found,) = samples(boxed(VisualGenomeObjects, tmp_path, records, prompt="referring/where"))
    assert (found.id, turns(found)) == ("2", ["<image>\nWhere is the clock?", "[[500,100,600,300]]"])


def test_two_things_are_asked_for_their_relation(tmp_path: Path) -> None:
    records = [{"image_id": 1, "relationships": [related()]}]
    (found,) = samples(boxed(VisualGenomeRelations, tmp_path, records, prompt="relation/how"))
    asked = "<image>\nHow is shade [[000,100,100,300]] related to street [[500,100,600,300]]?"
    assert (found.id, turns(found), found.references) == ("15927", [asked, "on"], ("on",))
    assert score([found]) == 1.0 and score([found], right=False) == 0.0


@pytest.mark.parametrize(
    ("kind", "record", "rule"),
    [
        (VisualGenomeRegions, {"id": 1, "regions": [region(image_id=2)]}, "region 1382 is in the image 2, expected 1"),
        (
            VisualGenomeRegions,
            {"id": 1, "regions": [region(width=0)]},
            "(id 1): number 1382: the box [400, 60, 0, 120]",
        ),
        (VisualGenomeRegions, {"id": 1, "regions": [region(x="4")]}, "number 1382: 'x' is a text, expected a number"),
        (VisualGenomeRegions, {"id": 2, "regions": [region(image_id=2)]}, "(id 2): the image 2 is not in "),
        (VisualGenomeObjects, {"image_id": 1, "objects": [thing(2, "x", 900)]}, "(image_id 1): number 2: the box [900"),
        (VisualGenomeObjects, {"image_id": 1, "objects": [thing(2, " ")]}, "(image_id 1): 'names' is empty"),
        (VisualGenomeRelations, {"image_id": 1, "relationships": [related(predicate="")]}, "'predicate' is empty"),
        (VisualGenomeRelations, {"image_id": 1, "relationships": [related(object={})]}, "number 15927: has no 'x'"),
        (VisualGenomeRelations, {"image_id": 1, "relationships": [related(subject=None)]}, "'subject' is null"),
    ],
)
def test_bad_boxes(tmp_path: Path, kind: Any, record: Any, rule: str) -> None:
    with pytest.raises(ValueError) as error:
        boxed(kind, tmp_path, [record]).load()
    assert "records.json: record 0 (" in str(error.value) and rule in str(error.value)


@pytest.mark.parametrize(
    ("sizes", "rule"),
    [
        ({}, "image_data.json: found no list, expected the list of images"),
        ([{"image_id": 1, "width": 800}], "image_data.json: record 0 (image_id 1): has no 'height'"),
        (SIZES * 2, "image_data.json: record 1 (image_id 1): the id occurs twice"),
    ],
)
def test_bad_sizes(tmp_path: Path, sizes: Any, rule: str) -> None:
    with pytest.raises(ValueError) as error:
        boxed(VisualGenomeRegions, tmp_path, [{"id": 1, "regions": [region()]}], sizes).load()
    assert rule in str(error.value)


REGIONS = SHARED / "format_samples/region_descriptions.json"


@pytest.mark.skipif(not REGIONS.exists(), reason="Visual Genome's own regions are not here")
def test_visual_genomes_own_regions(tmp_path: Path) -> None:
    records = json.loads(REGIONS.read_text())[:15]
    sizes = [{"image_id": each["id"], "width": 1280, "height": 1280} for each in records]
    images = touch(tmp_path / "images", *(f"{each['id']}.jpg" for each in records))
    regions = write(tmp_path / "region_descriptions.json", records)
    made = VisualGenomeRegions(regions, write(tmp_path / "image_data.json", sizes), images, "llava")
    made.load()
    assert len(made) == sum(len(each["regions"]) for each in records)
    assert (made.question(0).id, made.question(0).question) == ("1382", "the clock is green in colour")
    # 421 of 1280 pixels, and 82 more.
    assert made.question(0).answer == "[0.33, 0.04, 0.39, 0.15]"
